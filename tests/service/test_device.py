"""The engine with a segmenter on a device: images encoded together, masks counted there, and faults kept apart."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import MaskError
from samr1_verl.segmenters import Embedding, Prediction, Prompt, SegmenterError
from samr1_verl.segmenters.base import DevicePrediction, DeviceSegmenter, Limits
from samr1_verl.service.engine import Counters
from tests.errors import refused
from tests.service.fake import BoxSegmenter, image_file
from tests.service.test_engine import BOX, rectangle, truth_of
from tests.waiting import GUARD_S, until


class GpuBoxes(BoxSegmenter):
    """The fake segmenter with the methods of one on a GPU. Its device is torch's CPU."""

    def __init__(self, images: int = 4, mask_bytes: int = 1 << 20) -> None:
        super().__init__()
        self.device, self.limits, self.uploads = "cpu", Limits(64, images, 2, mask_bytes), 0
        self.batches: list[list[int]] = []  # grey of each image, by call of the encoder
        self.refused: int | None = None  # grey of an image that the encoder cannot take
        self.decoded: list[str] = []  # method of each decode
        self.seen: list[Embedding] = []

    def encode(self, image: np.ndarray) -> Embedding:
        return self.encode_batch([image])[0]

    def encode_batch(self, images: Sequence[np.ndarray]) -> list[Embedding]:
        self.batches.append([int(image[0, 0, 0]) for image in images])
        if self.refused in self.batches[-1]:
            raise (
                ImageError("image_too_thin", "20x10 pixels", "too thin")
                if self.refused == 3
                else RuntimeError("out of memory")
            )
        return [super(GpuBoxes, self).encode(image) for image in images]

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        self.decoded.append("host")
        return super().decode(embedding, prompts)

    def decode_on_device(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[DevicePrediction]:
        self.decoded.append("device")
        self.seen.append(embedding)
        predictions = super().decode(embedding, prompts)
        return [DevicePrediction(torch.from_numpy(one.mask), one.score) for one in predictions]


def images_in(folder: Path, *greys: int) -> list[tuple[Path, str]]:
    return [image_file(folder, grey) for grey in greys]


async def ask(engine: Any, segmenter: GpuBoxes, images: list[tuple[Path, str]]) -> list[Any]:
    """Results of the images, all of which wait while the first is encoded."""
    segmenter.gate.clear()
    before, (first, *others) = engine.counters().requests, images
    asked = [asyncio.ensure_future(engine.segment(*first, [BOX]))]
    await until(segmenter.begun.is_set)
    asked += [asyncio.ensure_future(engine.segment(*image, [BOX])) for image in others]
    await until(lambda: engine.counters().requests == before + len(images))
    segmenter.gate.set()
    return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), GUARD_S)


async def test_images_that_wait_are_encoded_together_up_to_the_limit(make_engine, tmp_path):
    segmenter = GpuBoxes()
    assert isinstance(segmenter, DeviceSegmenter)
    engine = make_engine(segmenter)
    results = await ask(engine, segmenter, images_in(tmp_path, 1, 2, 3, 4, 5, 6, 7))
    assert [len(result) for result in results] == [1] * 7
    assert segmenter.batches == [[1], [2, 3, 4, 5], [6, 7]]
    await until(lambda: not engine.counters().queued)  # the calls for images that another call encoded do nothing
    assert engine.counters() == Counters(requests=7, encodes=7, decodes=7, cached_bytes=7 * 4096)


@pytest.mark.parametrize(
    ("bad", "fault", "code"), [(3, ImageError, "image_too_thin"), (5, SegmenterError, "encode_failed")]
)
async def test_an_image_that_fails_does_not_fail_the_others_of_its_batch(make_engine, tmp_path, bad, fault, code):
    segmenter = GpuBoxes(images=8)
    segmenter.refused = bad
    images = images_in(tmp_path, 1, 2, 3, 4, 5)
    results = await ask(make_engine(segmenter), segmenter, images)
    assert [type(result) for result in results] == [fault if grey == bad else list for grey in (1, 2, 3, 4, 5)]
    assert results[bad - 1].code == code and f"{bad}.png" in str(results[bad - 1])
    assert segmenter.batches == [[1], [2, 3, 4, 5], [2], [3], [4], [5]]


async def test_a_batch_with_too_few_embeddings_is_an_error_and_no_silence(make_engine, tmp_path, monkeypatch):
    segmenter = GpuBoxes()
    whole = segmenter.encode_batch
    monkeypatch.setattr(segmenter, "encode_batch", lambda images: whole(images)[:2])
    images = images_in(tmp_path, 1, 2, 3, 4, 5)
    results = await ask(make_engine(segmenter), segmenter, images)
    assert [type(result) for result in results] == [list] + [ValueError] * 4


async def test_a_missing_file_does_not_fail_the_others_of_its_batch(make_engine, tmp_path):
    segmenter = GpuBoxes(images=8)
    images = images_in(tmp_path, 1, 2, 3, 4)
    images[2][0].unlink()
    results = await ask(make_engine(segmenter), segmenter, images)
    assert [isinstance(result, ImageError) for result in results] == [False, False, True, False]
    assert results[2].code == "no_such_image" and str(images[2][0]) in str(results[2])


async def test_encodes_ahead_of_time_do_not_join_those_that_a_request_waits_for(make_engine, tmp_path):
    segmenter = GpuBoxes(images=8)
    engine = make_engine(segmenter)
    busy, *ahead = images_in(tmp_path, 1, 2, 3, 4)
    waiting = images_in(tmp_path, 5, 6)
    segmenter.gate.clear()
    first = asyncio.ensure_future(engine.segment(*busy, [BOX]))
    await until(segmenter.begun.is_set)
    for image in ahead:
        await engine.prefetch(*image)
    await asyncio.gather(first, ask(engine, segmenter, [*waiting, ahead[2]]))  # the last one is asked for after all
    await until(lambda: engine.counters().encodes == 6)
    assert [sorted(batch) for batch in segmenter.batches] == [[1], [4, 5, 6], [2, 3]]


async def test_masks_that_are_only_counted_stay_on_the_device(make_engine, tmp_path):
    segmenter, plain = GpuBoxes(), BoxSegmenter()
    image = image_file(tmp_path, 7)
    truth = truth_of(rectangle(0, 0, 3, 4), rectangle(10, 0, 12, 4), ignore=rectangle(0, 0, 12, 1))
    groups = [[Prompt((0, 0, 4, 4)), Prompt((2, 0, 6, 4))], [Prompt((1, 0, 9, 9))], [Prompt((0, 0, 1, 1))]] * 2
    engines = make_engine(segmenter), make_engine(plain)
    counted, expected = [
        await asyncio.gather(*(engine.overlap(*image, prompts, truth) for prompts in groups)) for engine in engines
    ]
    assert counted == expected and len(set(map(str, counted))) == 3
    assert set(segmenter.decoded) == {"device"}
    with refused(MaskError, "size_differs", f"{image[0]}: ground_truth.size", "20x10", "10x20 (HxW)"):
        await engines[0].overlap(*image, [BOX], truth_of(rectangle(0, 0, 3, 4, (20, 10))))


async def test_masks_that_are_asked_for_or_too_many_for_the_device_come_to_host_memory(make_engine, tmp_path):
    image, truth = image_file(tmp_path, 7), truth_of(rectangle(0, 0, 3, 4))
    segmenter = GpuBoxes(mask_bytes=2 * 200)
    engine = make_engine(segmenter)
    (prediction,) = await engine.segment(*image, [BOX])
    assert isinstance(prediction.mask, np.ndarray) and segmenter.decoded == ["host"]
    for objects, place in ((2, "device"), (3, "host")):  # of 10 x 20 pixels each
        await engine.overlap(*image, [Prompt((0, 0, 3 + index, 4)) for index in range(objects)], truth)
        assert segmenter.decoded[-1] == place


async def test_a_fault_of_the_device_is_the_segmenters_and_names_the_image(make_engine, tmp_path, monkeypatch):
    def lost(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    engine = make_engine(GpuBoxes())
    monkeypatch.setattr("samr1_verl.segmenters.device_overlap._on", lost)
    with refused(SegmenterError, "overlap_failed", "7.png: ", "on cpu", "no memory"):
        await engine.overlap(*image_file(tmp_path, 7), [BOX], truth_of(rectangle(0, 0, 3, 4)))


@pytest.mark.parametrize("cache_dtype", ["float32", "float16"])
async def test_the_decodes_of_a_group_get_one_object_as_its_embedding(make_engine, tmp_path, cache_dtype):
    """A segmenter knows by the object what is on its device already."""
    segmenter = GpuBoxes()
    engine = make_engine(segmenter, cache_dtype=cache_dtype)
    image, truth = image_file(tmp_path, 7), truth_of(rectangle(0, 0, 3, 4))
    for _ in range(3):
        await engine.overlap(*image, [BOX], truth)
    assert len(segmenter.seen) == 3 and len(set(map(id, segmenter.seen))) == 1
    assert segmenter.seen[0].arrays["mean"].dtype == np.float32


async def test_uploads_are_counted(make_engine):
    segmenter = GpuBoxes()
    engine = make_engine(segmenter)
    segmenter.uploads = 3
    assert engine.counters() == Counters(uploads=3)


async def test_a_decode_gets_the_embedding_that_the_encoder_left_on_the_device(make_engine, tmp_path):
    """A segmenter knows it by the object; a copy of it would be copied to the device, and would lie there twice."""
    segmenter, image = GpuBoxes(), image_file(tmp_path, 1)
    encode, made = segmenter.encode_batch, []
    segmenter.encode_batch = lambda images: made.extend(found := encode(images)) or found
    engine = make_engine(segmenter)
    for _ in range(2):
        await engine.overlap(*image, [BOX], truth_of(rectangle(0, 0, 3, 4)))
    assert [embedding is made[0] for embedding in segmenter.seen] == [True, True]
