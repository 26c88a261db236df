"""SAM, SAM-HQ, SAM 2 and SAM 3 of transformers, tiny and random: masks and scores are the library's own, to the bit."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file

from reward_fns.samr1 import compute_score
from samr1_verl.config import ConfigError, SegmenterConfig, samr1_config
from samr1_verl.geometry.images import ImageError, sha256_of
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.preflight.inputs import check_segmenter
from samr1_verl.segmenters import Embedding, Prompt, SegmenterError, load_segmenter, segmenter_problems
from samr1_verl.segmenters import transformers as backend
from samr1_verl.segmenters.base import CPU_LIMITS
from samr1_verl.segmenters.torch_common import GPU_LIMITS, limits_of
from samr1_verl.service.client import get_client
from samr1_verl.service.engine import Counters, Engine
from tests.composing import compose_recipe
from tests.errors import refused
from tests.reward_fns.scoring import SERVICE
from tests.segmenters.tiny_sams import KINDS, library

FORMS = {
    "box": [Prompt((10.3, 5, 60, 40.7))],
    "point": [Prompt(None, ((40.2, 20.6),), (1,))],
    "points": [Prompt(None, ((40, 20), (12.9, 30)), (1, 1))],
    "negative point": [Prompt(None, ((40, 20), (12.9, 30)), (1, 0))],
    "box and points": [Prompt((10, 5, 60, 40.7), ((40, 20), (50.1, 9)), (1, 1))],
    "box and a negative point": [Prompt((10, 5, 60, 40), ((40, 20), (12.1, 7)), (1, 0))],
    "several": [Prompt((2, 3, 30, 40), ((9, 9.5),), (1,)), Prompt((30.6, 1, 61, 33), ((40, 7),), (0,))],
}


def config_of(path: Path | str, **changes: Any) -> SegmenterConfig:
    values = {"backend": "transformers", "path": str(path), "device": "cpu", "dtype": "float32"}
    return SegmenterConfig.model_validate(values | {"service": SERVICE} | changes)


@lru_cache
def segmenter_of(folder: Path, dtype: str = "float32", multimask: bool = True) -> Any:
    segmenter = load_segmenter(config_of(folder, dtype=dtype, multimask=multimask))
    segmenter.limits = replace(CPU_LIMITS, prompts=64)  # as the library batches: kernels round by the batch's size
    return segmenter


def image_of(size: tuple[int, int]) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    pixels[8:30, 20:45] = (250, 40, 10)
    return pixels


def equal(predictions: list[Any], masks: list[np.ndarray], scores: list[float]) -> None:
    assert len(predictions) == len(masks)
    for prediction, mask in zip(predictions, masks, strict=True):
        assert prediction.mask.dtype == bool
        np.testing.assert_array_equal(prediction.mask, mask)
    assert [prediction.score for prediction in predictions] == scores


@pytest.mark.parametrize("size", [(48, 90), (101, 63)], ids=["wide", "tall"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_scores_are_the_librarys(folders, kind, size):
    segmenter, image = segmenter_of(folders[kind]), image_of(size)
    embedding = segmenter.encode(image)
    assert embedding.size == size
    seen = set()
    for prompts in FORMS.values():
        predictions = segmenter.decode(embedding, prompts)
        equal(predictions, *library(kind, folders[kind], image, prompts))
        seen |= {prediction.mask.tobytes() for prediction in predictions}
        assert all(0 < prediction.mask.sum() < prediction.mask.size for prediction in predictions)
    assert len(seen) > len(FORMS) - 2  # the masks follow their prompts, so that equal ones say something


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_mask_is_the_librarys(folders, kind):
    segmenter, image = segmenter_of(folders[kind], multimask=False), image_of((48, 90))
    best = segmenter_of(folders[kind])
    assert segmenter.identity == best.identity  # the embedding is the same
    embedding, others = segmenter.encode(image), 0
    for prompts in FORMS.values():
        predictions = segmenter.decode(embedding, prompts)
        equal(predictions, *library(kind, folders[kind], image, prompts, multimask=False))
        others += predictions[0].score != best.decode(embedding, prompts)[0].score
    # SAM 2 and 3 fall back to the best of three where the single mask is unstable, which random weights' masks are.
    assert others or kind.startswith(("sam2", "sam3"))


@pytest.fixture(scope="module")
def sam(folders):
    return segmenter_of(folders["sam"])


@pytest.fixture(scope="module")
def embedding(sam) -> Embedding:
    return sam.encode(image_of((48, 90)))


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Prompts in each call of SAM's decoder."""
    batches: list[int] = []
    forward = transformers.SamModel.forward

    def counted(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        batches.append(output.pred_masks.shape[1])
        return output

    monkeypatch.setattr(transformers.SamModel, "forward", counted)
    return batches


def test_prompts_of_one_form_share_a_call_and_masks_come_in_the_prompts_order(sam, embedding, calls):
    box, point, both = FORMS["box"], FORMS["point"], FORMS["several"]
    mixed = [both[0], box[0], both[1], point[0]]
    predictions = sam.decode(embedding, mixed)
    assert calls == [2, 1, 1]
    separate = sam.decode(embedding, both), sam.decode(embedding, box), sam.decode(embedding, point)
    expected = [separate[0][0], separate[1][0], separate[0][1], separate[2][0]]
    equal(predictions, [one.mask for one in expected], [one.score for one in expected])
    assert sam.decode(embedding, []) == []


def test_a_cpu_decodes_one_prompt_at_a_time(sam, folders, embedding, calls, monkeypatch):
    monkeypatch.setattr(sam, "limits", limits_of(torch.device("cpu")))
    predictions = sam.decode(embedding, FORMS["several"])
    assert calls == [1, 1] and limits_of(torch.device("cuda:0")) is GPU_LIMITS
    for prediction, prompt in zip(predictions, FORMS["several"], strict=True):
        equal([prediction], *library("sam", folders["sam"], image_of((48, 90)), [prompt]))


def test_many_objects_are_decoded_in_batches_of_bounded_size(sam, embedding, calls):
    prompts = [Prompt((index % 9, index % 7, 40 + index % 5, 40)) for index in range(70)]
    predictions = sam.decode(embedding, prompts)
    assert calls == [64, 6]
    for index in (0, 63, 64, 69):  # kernels round by the batch's size, so not to the bit
        (alone,) = sam.decode(embedding, [prompts[index]])
        assert (alone.mask != predictions[index].mask).mean() < 1e-3
        assert alone.score == pytest.approx(predictions[index].score, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_the_librarys_and_takes_half_the_memory(folders, kind):
    segmenter, image = segmenter_of(folders[kind], "bfloat16"), image_of((48, 90))
    kept = segmenter.encode(image)
    prompts = FORMS["several"]
    equal(segmenter.decode(kept, prompts), *library(kind, folders[kind], image, prompts, "bfloat16"))
    exact = segmenter_of(folders[kind]).encode(image)
    assert kept.nbytes == exact.nbytes / 2
    for name, array in exact.arrays.items():
        rounded = (kept.arrays[name].astype(np.uint32) << 16).view(np.float32)  # bfloat16 is float32's upper half
        assert np.abs(rounded - array).mean() < 0.05 * np.abs(array).mean()


def test_float16_embeddings_are_float16(folders):
    segmenter, image = segmenter_of(folders["sam"], "float16"), image_of((48, 90))
    kept = segmenter.encode(image)
    assert {array.dtype for array in kept.arrays.values()} == {np.dtype(np.float16)}
    equal(segmenter.decode(kept, FORMS["box"]), *library("sam", folders["sam"], image, FORMS["box"], "float16"))


def test_a_sam2_video_checkpoint_is_its_image_model(folders):
    video, image = segmenter_of(folders["sam2_video"]), image_of((48, 90))
    for prompts in (FORMS["box and points"], FORMS["several"]):
        masks, scores = library("sam2", folders["sam2"], image, prompts)
        equal(video.decode(video.encode(image), prompts), masks, scores)
    assert json.loads((folders["sam2_video"] / "config.json").read_text())["model_type"] == "sam2_video"


async def test_eight_requests_cost_one_encode_and_a_later_run_none(folders, tmp_path):
    Image.fromarray(image_of((48, 90))).save(tmp_path / "image.png")
    image = tmp_path / "image.png", sha256_of(tmp_path / "image.png")
    segmenter = segmenter_of(folders["sam2"], "bfloat16")
    nbytes, answers = segmenter.encode(image_of((48, 90))).nbytes, []
    for expected in ({"encodes": 1}, {"disk_hits": 1}):
        engine = Engine(segmenter, 1_000_000, tmp_path / "cache")
        answers += await asyncio.gather(*(engine.segment(*image, FORMS["box and points"]) for _ in range(8)))
        counters = engine.counters()
        assert counters == Counters(requests=8, **expected, decodes=counters.decodes, cached_bytes=nbytes)
        engine.close()
    for (answer,) in answers:
        equal([answer], [answers[0][0].mask], [answers[0][0].score])


async def test_the_reward_is_that_of_the_mask(folders, tmp_path):
    image = image_of((48, 90))
    Image.fromarray(image).save(tmp_path / "image.png")
    (mask,), _ = library("sam2", folders["sam2"], image, [Prompt((20, 8, 45, 30), ((30, 20), (40, 12)), (1, 1))])
    truth = {"size": [48, 90], "masks": [encode_rle(mask)], "ignore": None, "boxes": [], "points": []}
    row = {"image": str(tmp_path / "image.png"), "sha256": sha256_of(tmp_path / "image.png")}
    row |= {"policy_size": [180, 96], "frame": "absolute"}  # twice the image
    answer = '{"bbox": [40, 16, 90, 60], "points_1": [60, 40], "points_2": [80, 24]}'
    segmenter = {"backend": "transformers", "path": str(folders["sam2"]), "device": "cpu", "dtype": "float32"}
    options = {"segmenter": segmenter | {"service": {"mode": "embedded", "cache_gb": 1, "cache_dir": None}}}
    text = f"<think>Red.</think><answer>{answer}</answer>"
    results = await asyncio.gather(*(compute_score("drawn", text, json.dumps(truth), row, **options) for _ in range(8)))
    assert [result["acc"] for result in results] == [1.0] * 8
    assert results[0]["score"] == 6 and results[0]["intersection"] == mask.sum()
    assert get_client(**options).counters().encodes == 1


def test_identity_follows_weights_configuration_and_type(folders, sam, tmp_path):
    copy = shutil.copytree(folders["sam"], tmp_path / "copy")
    assert load_segmenter(config_of(copy)).identity == sam.identity
    identities = {sam.identity, segmenter_of(folders["sam"], "bfloat16").identity}
    weights = load_file(copy / "model.safetensors")
    weights["vision_encoder.pos_embed"] += 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    identities.add(load_segmenter(config_of(copy)).identity)
    processor = json.loads((copy / "processor_config.json").read_text())
    processor["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    (copy / "processor_config.json").write_text(json.dumps(processor))
    identities.add(load_segmenter(config_of(copy)).identity)
    assert len(identities) == 4


def without(name: str):
    return lambda folder: (folder / name).unlink()


def rewritten(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (shutil.rmtree, ["no folder"]),
        (without("config.json"), ["holds no config.json"]),
        (rewritten("config.json", "{"), ["config.json", "JSON"]),
        (rewritten("config.json", "[]"), ["model_type None"]),
        (
            rewritten("config.json", '{"model_type": "llama"}'),
            ["model_type 'llama'", "sam, sam_hq, sam2, sam2_video, sam3"],
        ),
        (without("model.safetensors"), ["(*.safetensors)"]),
        (without("processor_config.json"), ["processor_config.json nor preprocessor_config.json"]),
    ],
)
def test_a_folder_that_is_no_model_is_a_problem(folders, tmp_path, change, names):
    folder = shutil.copytree(folders["sam"], tmp_path / "copy")
    change(folder)
    (problem,) = segmenter_problems(config_of(folder))
    assert problem.startswith("samr1.segmenter.path: ") and str(folder) in problem
    with refused(ConfigError, "segmenter_not_loadable", problem, *names):
        load_segmenter(config_of(folder))


def test_weights_that_are_not_the_models_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["sam"], tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with refused(ConfigError, "tensors_missing", folder, "lack 1 ", "mask_decoder.iou_token.weight"):
        load_segmenter(config_of(folder))
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")
    with refused(ConfigError, "weights_not_loadable", f"samr1.segmenter.path: {folder}"):
        load_segmenter(config_of(folder))


def test_a_score_that_is_no_number_is_a_fault(folders, tmp_path):
    folder = shutil.copytree(folders["sam"], tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights["mask_decoder.iou_prediction_head.proj_out.bias"][:] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    segmenter = load_segmenter(config_of(folder))
    with refused(SegmenterError, "prediction_not_finite", "nan", "samr1.segmenter.dtype"):
        segmenter.decode(segmenter.encode(image_of((48, 90))), FORMS["box"])


def test_a_device_that_is_none_or_not_there_is_refused(folders):
    (problem,) = segmenter_problems(config_of(folders["sam"], device="tpu"))
    assert problem.startswith("samr1.segmenter.device ") and "'tpu'" in problem and "auto, cpu, cuda" in problem
    with refused(ConfigError, "no_such_gpu", "samr1.segmenter.device: found 'cuda:99'", torch.cuda.device_count()):
        load_segmenter(config_of(folders["sam"], device="cuda:99"))


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_only_rgb_bytes_are_encoded(sam, image):
    with pytest.raises(ValueError, match="expected uint8 HxWx3"):
        sam.encode(image)


def test_images_of_few_pixels_are_taken_and_too_thin_ones_refused(sam, folders):
    with refused(ImageError, "image_too_thin", "3000x1 pixels: "):
        sam.encode(np.zeros((1, 3000, 3), np.uint8))
    sam2 = segmenter_of(folders["sam2"])
    for size in ((1, 300), (3, 3)):  # SAM 2 scales both sides; three rows are no channels
        image = np.full((*size, 3), 200, dtype=np.uint8)
        (prediction,) = sam2.decode(sam2.encode(image), [Prompt((0, 0, 1, 1))])
        assert prediction.mask.shape == size


def test_the_preflight_takes_a_hub_id_at_its_word_and_refuses_a_missing_folder():
    recipe = compose_recipe("samr1")
    settings = samr1_config(recipe)
    assert settings.segmenter.backend == "transformers"
    assert list(check_segmenter(settings)) == []
    recipe.samr1.segmenter.path = "./nowhere/sam2"
    (problem,) = check_segmenter(samr1_config(recipe))
    for part in ("samr1.segmenter.path", str(Path("nowhere/sam2").absolute()), settings.prepare.segmenter):
        assert part in problem


def test_a_hub_id_that_cannot_be_had_is_named(monkeypatch):
    monkeypatch.setattr(backend.constants, "HF_HUB_OFFLINE", True)
    (problem,) = segmenter_problems(config_of("nobody/sam"))
    assert problem.startswith("samr1.segmenter.path: nobody/sam ") and "HF_HUB_OFFLINE" in problem
    monkeypatch.setattr(backend.constants, "HF_HUB_OFFLINE", False)

    def unreachable(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(backend, "snapshot_download", unreachable)
    place = "samr1.segmenter.path: nobody/sam: "
    with refused(ConfigError, "weights_not_fetched", place, "no connection", "hf download nobody/sam"):
        load_segmenter(config_of("nobody/sam"))


def test_of_a_hub_id_only_the_weights_that_are_read_are_fetched(folders, sam, monkeypatch):
    asked: list[Any] = []

    def snapshot(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(folders["sam"])

    monkeypatch.setattr(backend, "snapshot_download", snapshot)
    assert load_segmenter(config_of("somebody/sam")).identity == sam.identity
    assert asked == [("somebody/sam", ["*.json", "*.safetensors"])]


def test_a_cached_hub_model_of_another_kind_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "sam3_lite_text"}')
    monkeypatch.setattr(backend, "try_to_load_from_cache", lambda hub_id, name: str(tmp_path / name))
    (problem,) = segmenter_problems(config_of("somebody/sam3"))
    assert "'sam3_lite_text'" in problem
