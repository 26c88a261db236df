"""segment-anything, randomly initialised and saved to disk: masks and scores are its own predictor's, to the bit."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from segment_anything.build_sam import _build_sam

from samr1_verl.config import ConfigError, SegmenterConfig
from samr1_verl.geometry.images import ImageError
from samr1_verl.segmenters import Prompt, load_segmenter, segmenter_problems
from samr1_verl.segmenters import segment_anything as backend
from samr1_verl.segmenters.base import CPU_LIMITS
from tests.errors import refused
from tests.reward_fns.scoring import SERVICE
from tests.segmenters.test_transformers import FORMS, equal, image_of
from tests.segmenters.tiny_sams import random_weights

WIDTH = 32  # of a fourth architecture, two layers deep, that stands for ViT-B, L and H


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backend.MODELS, WIDTH, "tiny")
        patch.setitem(segment_anything.sam_model_registry, "tiny", partial(_build_sam, WIDTH, 2, 2, [1]))
        yield


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save(random_weights(segment_anything.sam_model_registry["tiny"]()), tmp_path_factory.mktemp("sam"))


def save(model: Any, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "sam.pth")
    return folder / "sam.pth"


def config_of(path: Path | str, **changes: Any) -> SegmenterConfig:
    values = {"backend": "segment_anything", "path": str(path), "device": "cpu", "dtype": "float32"}
    return SegmenterConfig.model_validate(values | {"service": SERVICE} | changes)


@lru_cache
def segmenter_of(path: Path, dtype: str = "float32", multimask: bool = True) -> Any:
    return load_segmenter(config_of(path, dtype=dtype, multimask=multimask))


def library(predictor: Any, prompts: list[Prompt], multimask: bool = True) -> tuple[list[np.ndarray], list[float]]:
    """Best masks and their scores by calls of `SamPredictor.predict`, one a prompt."""
    masks, scores = [], []
    for prompt in prompts:
        found, ious, _ = predictor.predict(
            point_coords=np.array(prompt.points) if prompt.points else None,
            point_labels=np.array(prompt.labels) if prompt.labels else None,
            box=None if prompt.box is None else np.array(prompt.box),
            multimask_output=multimask,
        )
        masks.append(found[ious.argmax()])
        scores.append(float(ious.max()))
    return masks, scores


@lru_cache
def encoded(path: Path, size: tuple[int, int]) -> Any:
    """Our embedding of the image of this size, which is the same for one mask and for the best of three."""
    return segmenter_of(path).encode(image_of(size))


@lru_cache
def predictor_of(path: Path, size: tuple[int, int]) -> Any:
    """The library's own predictor, which has encoded the image of this size."""
    predictor = segment_anything.SamPredictor(segment_anything.sam_model_registry["tiny"](checkpoint=path))
    predictor.set_image(image_of(size))
    return predictor


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 90), (101, 63)], ids=["wide", "tall"])
@pytest.mark.parametrize("multimask", [True, False], ids=["best of three", "single"])
def test_masks_and_scores_are_the_librarys(checkpoint, size, multimask):
    segmenter = segmenter_of(checkpoint, multimask=multimask)
    embedding, predictor = encoded(checkpoint, size), predictor_of(checkpoint, size)
    np.testing.assert_array_equal(embedding.arrays["image_embeddings"], predictor.get_image_embedding().numpy())
    assert embedding.size == size
    seen = set()
    for prompts in FORMS.values():
        for prompt in prompts:
            predictions = segmenter.decode(embedding, [prompt])
            equal(predictions, *library(predictor, [prompt], multimask))
            seen.add(predictions[0].mask.tobytes())
    assert len(seen) > len(FORMS) - 2  # the masks follow their prompts, so that equal ones say something


@pytest.mark.slow
def test_a_group_decoded_together_as_on_a_gpu_has_the_librarys_masks(checkpoint, monkeypatch):
    """Kernels round by the batch's size, so a pixel whose logit is as good as 0 may differ: IoU and not bits."""
    segmenter, embedding = segmenter_of(checkpoint), encoded(checkpoint, (48, 90))
    predictor = predictor_of(checkpoint, (48, 90))
    monkeypatch.setattr(segmenter, "limits", replace(CPU_LIMITS, prompts=64))
    prompts = [Prompt((index, index / 2, 40 + index, 40), ((30, 20),), (1,)) for index in range(8)]
    masks, scores = library(predictor, prompts)
    for prediction, mask, score in zip(segmenter.decode(embedding, prompts), masks, scores, strict=True):
        assert (prediction.mask & mask).sum() >= 0.9999 * (prediction.mask | mask).sum() > 0
        assert prediction.score == pytest.approx(score, rel=1e-4)


@pytest.mark.slow
def test_half_precision_is_the_librarys_under_autocast(checkpoint):
    """torch rounds a half-precision resize of one mask otherwise than of the predictor's three: IoU and not bits."""
    segmenter, image = segmenter_of(checkpoint, "bfloat16"), image_of((48, 90))
    embedding = segmenter.encode(image)
    with torch.autocast("cpu", torch.bfloat16):
        predictor = segment_anything.SamPredictor(segment_anything.sam_model_registry["tiny"](checkpoint=checkpoint))
        predictor.set_image(image)
        boxes = predictor.transform.apply_boxes(np.array([[10.3, 5, 60, 40.7]]), (48, 90))
        masks, ious, _ = predictor.predict_torch(None, None, torch.as_tensor(boxes, dtype=torch.float))
    best = int(ious[0].argmax())
    (prediction,), mask = segmenter.decode(embedding, FORMS["box"]), masks[0, best].numpy()
    assert (prediction.mask & mask).sum() >= 0.999 * (prediction.mask | mask).sum() > 0
    assert prediction.score == float(ious[0, best])
    exact = segmenter_of(checkpoint).decode(encoded(checkpoint, (48, 90)), FORMS["box"])[0]
    assert exact.score != float(ious[0, best])  # it did compute in another type
    assert segmenter.identity != segmenter_of(checkpoint).identity


@pytest.mark.thorough
def test_vit_b_itself(tmp_path, monkeypatch):
    """The real encoder takes 15 seconds, so it runs once: the library's predictor takes the embedding that we made."""
    torch.manual_seed(0)
    model, image = segment_anything.sam_model_registry["vit_b"](), image_of((48, 90))
    segmenter, predictor = load_segmenter(config_of(save(model, tmp_path))), segment_anything.SamPredictor(model)
    embedding = segmenter.encode(image)
    features = torch.from_numpy(embedding.arrays["image_embeddings"])
    assert features.shape == (1, 256, 64, 64)
    monkeypatch.setattr(model.image_encoder, "forward", lambda pixels: features)
    predictor.set_image(image)
    for name in ("box", "box and a negative point"):
        equal(segmenter.decode(embedding, FORMS[name]), *library(predictor, FORMS[name]))


def test_the_three_published_widths_are_known():
    for width, name in ((768, "vit_b"), (1024, "vit_l"), (1280, "vit_h")):
        assert backend.MODELS[width] == name and name in segment_anything.sam_model_registry


def test_a_file_that_is_no_checkpoint_is_refused(checkpoint, tmp_path):
    (problem,) = segmenter_problems(config_of(tmp_path / "gone.pth"))
    assert problem.startswith("samr1.segmenter.path: ") and str(tmp_path / "gone.pth") in problem
    (problem,) = segmenter_problems(config_of(checkpoint, device="tpu"))
    assert problem.startswith("samr1.segmenter.device ") and "'tpu'" in problem and "auto, cpu, cuda" in problem
    broken = tmp_path / "sam.pth"
    broken.write_bytes(b"<html>not found</html>")
    with refused(ConfigError, "weights_not_loadable", f"samr1.segmenter.path: {broken}"):
        load_segmenter(config_of(broken))
    broken.write_bytes(checkpoint.read_bytes()[:100_000])
    with refused(ConfigError, "weights_not_loadable", f"samr1.segmenter.path: {broken}"):
        load_segmenter(config_of(broken))
    torch.save({"weight": torch.zeros(3)}, broken)
    with refused(ConfigError, "not_a_sam", broken, backend.WIDTH_KEY, "768", "backend=transformers"):
        load_segmenter(config_of(broken))
    weights = torch.load(checkpoint)
    del weights["mask_decoder.iou_token.weight"]
    torch.save(weights, broken)
    with refused(ConfigError, "tensors_differ", broken, "SAM tiny", "mask_decoder.iou_token.weight"):
        load_segmenter(config_of(broken))


def test_too_thin_an_image_and_other_arrays_are_refused(checkpoint):
    with refused(ImageError, "image_too_thin", "3000x1 pixels: "):
        segmenter_of(checkpoint).encode(np.zeros((1, 3000, 3), np.uint8))
    with pytest.raises(ValueError, match="expected uint8 HxWx3"):
        segmenter_of(checkpoint).encode(np.zeros((8, 8), np.uint8))
