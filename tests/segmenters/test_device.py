"""The work of a segmenter on a GPU, with its limits set on a CPU: batches, embeddings that stay, masks that stay."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import resize

from samr1_verl.geometry.giou import COUNTS
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import MaskError
from samr1_verl.geometry.overlap import overlap_of
from samr1_verl.segmenters import Embedding, Prompt, load_segmenter
from samr1_verl.segmenters.base import DevicePrediction, DeviceSegmenter
from samr1_verl.segmenters.device_overlap import DeviceTruth
from samr1_verl.segmenters.torch_common import GPU_LIMITS
from tests.errors import refused
from tests.segmenters.test_transformers import FORMS, config_of, equal, image_of
from tests.segmenters.tiny_sams import KINDS

PROMPTS = FORMS["several"]


def segmenter_of(folder: Path, **changes: Any) -> Any:
    """A segmenter on the CPU that works as on a GPU."""
    segmenter = load_segmenter(config_of(folder, **changes))
    assert isinstance(segmenter, DeviceSegmenter) and segmenter.device == "cpu"
    segmenter.limits = GPU_LIMITS
    return segmenter


def copy_of(embedding: Embedding) -> Embedding:
    """The same arrays in another object, as they come from a file or another process."""
    return Embedding({name: array.copy() for name, array in embedding.arrays.items()}, embedding.size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_decodes_without_a_copy_and_with_the_same_masks(folders, kind):
    segmenter = segmenter_of(folders[kind])
    embedding = segmenter.encode(image_of((48, 90)))
    predictions = [segmenter.decode(embedding, PROMPTS) for _ in range(8)]
    assert segmenter.uploads == 0
    again = copy_of(embedding)
    for prediction in predictions:
        equal(segmenter.decode(again, PROMPTS), [one.mask for one in prediction], [one.score for one in prediction])
    assert segmenter.uploads == 1  # for eight decodes


def test_the_newest_embeddings_stay_and_dropped_ones_go(folders):
    segmenter, image = segmenter_of(folders["sam"]), image_of((48, 90))
    segmenter.limits = replace(GPU_LIMITS, embeddings=2)
    first, second, third = (segmenter.encode(image) for _ in range(3))
    for embedding, uploads in ((third, 0), (second, 0), (first, 1), (second, 1), (third, 2)):
        segmenter.decode(embedding, PROMPTS)
        assert segmenter.uploads == uploads
    assert len(segmenter._on_device) == 2
    del first, second, third, embedding
    gc.collect()
    assert len(segmenter._on_device) == 0


def test_a_cpu_keeps_nothing_twice(folders):
    segmenter = load_segmenter(config_of(folders["sam"]))
    embedding = segmenter.encode(image_of((48, 90)))
    segmenter.decode(embedding, PROMPTS)
    assert len(segmenter._on_device) == 0 and segmenter.uploads == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_images_that_are_encoded_together_have_their_own_embeddings(folders, kind, dtype):
    """Kernels round by the batch's size, so masks are compared and not bits."""
    segmenter = segmenter_of(folders[kind], dtype=dtype)
    images = [image_of((48, 90)), image_of((101, 63)), np.full((64, 64, 3), 90, np.uint8)]
    together, alone = segmenter.encode_batch(images), [segmenter.encode(image) for image in images]
    assert [embedding.size for embedding in together] == [(48, 90), (101, 63), (64, 64)]
    for own, expected in zip(together, alone, strict=True):
        assert own.nbytes == expected.nbytes
        assert {name: array.shape for name, array in own.arrays.items()} == {
            name: array.shape for name, array in expected.arrays.items()
        }
        pairs = zip(segmenter.decode(own, PROMPTS), segmenter.decode(expected, PROMPTS), strict=True)
        for prediction, other in pairs:
            assert (prediction.mask != other.mask).mean() < (1e-3 if dtype == "float32" else 0.1)
    different = segmenter.decode(together[0], PROMPTS)[0].mask, segmenter.decode(together[1], PROMPTS)[0].mask
    assert different[0].shape != different[1].shape


def test_one_image_of_a_batch_that_cannot_be_taken_is_named(folders):
    with refused(ImageError, "image_too_thin", "3000x1 pixels: "):
        segmenter_of(folders["sam"]).encode_batch([image_of((48, 90)), np.zeros((1, 3000, 3), np.uint8)])


@pytest.mark.parametrize("kind", KINDS)
def test_masks_that_stay_are_the_masks(folders, kind):
    segmenter = segmenter_of(folders[kind])
    embedding = segmenter.encode(image_of((48, 90)))
    predictions = segmenter.decode(embedding, PROMPTS)
    stayed = segmenter.decode_on_device(embedding, PROMPTS)
    assert all(isinstance(one.mask, torch.Tensor) and one.mask.dtype == torch.bool for one in stayed)
    equal(predictions, [one.mask.numpy() for one in stayed], [one.score for one in stayed])


@pytest.mark.parametrize("objects", [1, 3])
@pytest.mark.parametrize("with_ignore", [False, True])
def test_counts_on_the_device_are_those_in_host_memory(objects, with_ignore):
    random = np.random.default_rng(objects)
    for _ in range(20):
        shares = random.uniform(0, 1, objects + 2)
        *masks, truth, ignore = (random.random((37, 53)) < share for share in shares)
        scores = random.random(objects).tolist()
        ignored = ignore.T.copy().T if with_ignore else None  # columns first, as decode_rle gives it
        on_device = DeviceTruth(truth, ignored, "cpu").overlap(
            [DevicePrediction(torch.from_numpy(mask), score) for mask, score in zip(masks, scores, strict=True)]
        )
        assert on_device == overlap_of(masks, scores, truth, ignored)
        assert all(isinstance(getattr(on_device.pixels, name), int) for name in COUNTS)
    with refused(MaskError, "shape_differs", "predicted mask: found (37, 53)", "ground truth is (53, 37)"):
        DeviceTruth(truth.T, None, "cpu").overlap([DevicePrediction(torch.from_numpy(masks[0]), 0.5)])


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_preprocessed_on_a_device_that_is_no_cpu(folders, kind):
    """The device "meta" has shapes and no values: a step in host memory would fail or leave it."""
    segmenter = load_segmenter(config_of(folders[kind]))
    image = image_of((48, 90))
    expected = segmenter._pixels([image])
    on_device = segmenter._processor.image_processor([image], input_data_format="channels_last", device="cpu")
    assert torch.equal(torch.stack(list(on_device["pixel_values"])), expected)
    segmenter._device = torch.device("meta")
    given: list[Any] = []
    call = type(segmenter._processor.image_processor).rescale_and_normalize

    def noted(self: Any, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        given.append(images.device.type)
        return call(self, images, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(segmenter._processor.image_processor), "rescale_and_normalize", noted)
        pixels = segmenter._pixels([image])
    assert given == ["meta"] and pixels.device.type == "meta" and pixels.shape == expected.shape


def test_torchvisions_resize_of_a_tensor_is_within_a_grey_level_of_an_images():
    """What segment-anything's image goes through on a GPU, against its own function in host memory."""
    from segment_anything.utils.transforms import ResizeLongestSide

    image, transform = image_of((201, 133)), ResizeLongestSide(1024)
    scaled = transform.apply_image(image)
    tensor = resize(torch.from_numpy(image).permute(2, 0, 1)[None], list(scaled.shape[:2]), antialias=True)
    difference = np.abs(tensor[0].permute(1, 2, 0).numpy().astype(int) - scaled.astype(int))
    assert difference.max() <= 1 and difference.mean() < 0.5


def test_prompts_without_an_object_decode_to_nothing(folders):
    segmenter = segmenter_of(folders["sam"])
    assert segmenter.decode_on_device(segmenter.encode(image_of((48, 90))), []) == []
    assert len(segmenter.decode_on_device(segmenter.encode(image_of((48, 90))), [Prompt((1, 2, 30, 40))])) == 1
