"""Encode-ahead, prompts decoded together, and the small print of what an engine accepts."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from PIL import Image

from samr1_verl.geometry.images import ImageError, sha256_of
from samr1_verl.segmenters import Embedding, Prompt, SegmenterError
from samr1_verl.service.cache import halved, restored
from samr1_verl.service.embeddings import UnknownImageError
from tests.errors import refused
from tests.service.fake import BoxSegmenter, image_file
from tests.service.test_engine import BOX
from tests.waiting import until


class Noting(BoxSegmenter):
    """Notes what it is asked, and encodes only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.clear()
        self.calls: list[object] = []  # the image's grey, or the prompts decoded together

    def encode(self, image):
        embedding = super().encode(image)
        self.calls.append(int(image[0, 0, 0]))
        return embedding

    def decode(self, embedding, prompts):
        self.calls.append(tuple(prompts))
        return super().decode(embedding, prompts)


async def test_after_a_prefetch_an_answer_waits_for_its_decode_only(make_engine, tmp_path):
    segmenter = BoxSegmenter()
    engine, image = make_engine(segmenter), image_file(tmp_path, 7)
    await asyncio.gather(*(engine.prefetch(*image) for _ in range(8)))
    await until(lambda: engine.counters().cached_bytes)
    assert engine.counters().requests == 0
    await asyncio.gather(*(engine.segment(*image, [BOX]) for _ in range(8)))
    counters = engine.counters()
    assert (counters.requests, counters.hits, counters.encodes, counters.wait_seconds) == (8, 8, 1, 0.0)


async def test_what_somebody_waits_for_goes_before_encodes_ahead_of_time(make_engine, tmp_path):
    segmenter = Noting()
    engine = make_engine(segmenter)
    images = {grey: image_file(tmp_path, grey) for grey in range(1, 6)}
    for grey in (1, 2, 3):
        await engine.prefetch(*images[grey])
        await until(segmenter.begun.is_set)
    asked = [asyncio.ensure_future(engine.segment(*images[grey], [BOX])) for grey in (4, 3)]
    await until(lambda: engine.counters().requests == 2)
    segmenter.gate.set()
    await asyncio.gather(*asked)
    await engine.segment(*images[2], [BOX])
    encodes = [call for call in segmenter.calls if isinstance(call, int)]
    assert encodes == [1, 4, 3, 2]  # 1 was running; 3 was ahead of time until a request wanted it


async def test_prompts_that_wait_for_one_image_are_decoded_together_and_answered_apart(make_engine, tmp_path):
    segmenter = Noting()
    engine, image, other = make_engine(segmenter), image_file(tmp_path, 7), image_file(tmp_path, 8)
    segmenter.gate.set()
    await engine.segment(*image, [BOX])
    segmenter.gate.clear()
    segmenter.begun.clear()
    blocking = asyncio.ensure_future(engine.segment(*other, [BOX]))
    await until(segmenter.begun.is_set)
    prompts = [Prompt((0, 0, 1 + index % 3, 2)) for index in range(8)]
    asked = [asyncio.ensure_future(engine.segment(*image, [prompt, BOX])) for prompt in prompts]
    await until(lambda: engine.counters().requests == 10)
    segmenter.calls.clear()
    segmenter.gate.set()
    results = await asyncio.gather(*asked)
    await blocking
    assert (prompts[0], BOX, prompts[1], prompts[2]) in segmenter.calls  # the eight of them, equal ones once
    for index, (own, box) in enumerate(results):
        assert own.mask.sum() == (1 + index % 3) * 2 and box.mask.sum() == 24


async def test_a_request_that_fails_does_not_fail_those_decoded_with_it(make_engine, tmp_path):
    segmenter = Noting()
    engine, image, other = make_engine(segmenter), image_file(tmp_path, 7), image_file(tmp_path, 8)
    segmenter.gate.set()
    await engine.segment(*image, [BOX])
    segmenter.gate.clear()
    segmenter.begun.clear()
    blocking = asyncio.ensure_future(engine.segment(*other, [BOX]))
    await until(segmenter.begun.is_set)
    bad = segmenter.poison = Prompt(None, ((1, 1),), (1,))
    asked = (engine.segment(*image, [prompt]) for prompt in (BOX, bad, BOX, BOX))
    answers = asyncio.gather(*asked, return_exceptions=True)
    await until(lambda: engine.counters().requests == 6)
    segmenter.gate.set()
    results = await answers
    await blocking
    assert (BOX, bad) in segmenter.calls
    assert isinstance(results[1], SegmenterError) and results[1].code == "decode_failed" and "7.png" in str(results[1])
    assert [len(results[index]) for index in (0, 2, 3)] == [1, 1, 1]


async def test_a_prefetch_that_fails_is_logged_and_the_request_says_why(make_engine, tmp_path, caplog):
    engine = make_engine(BoxSegmenter())
    await engine.prefetch(tmp_path / "gone.png", "0" * 64)
    await until(lambda: "ahead of time" in caplog.text)
    with refused(ImageError, "no_such_image", tmp_path / "gone.png"):
        await engine.segment(tmp_path / "gone.png", "0" * 64, [BOX])
    assert "gone.png" in caplog.text


async def test_float16_keeps_half_the_bytes_and_every_answer_sees_the_same_rounding(make_engine, tmp_path):
    class Seeing(BoxSegmenter):
        def decode(self, embedding, prompts):
            seen.append(embedding.arrays["mean"])
            return super().decode(embedding, prompts)

    seen: list[np.ndarray] = []
    image = image_file(tmp_path, 7)
    for _ in range(2):  # the second from the folder
        engine = make_engine(Seeing(), cache_dir=tmp_path / "cache", cache_dtype="float16")
        for _ in range(2):
            await engine.segment(*image, [BOX])
        assert engine.counters().cached_bytes == 2048
    assert len(seen) == 4 and all(array.dtype == np.float32 for array in seen)
    assert all((array == np.float32(np.float16(7))).all() for array in seen)
    exact = make_engine(Seeing(), cache_dir=tmp_path / "cache")
    await exact.segment(*image, [BOX])
    assert exact.counters().encodes == 1  # what float16 kept is not taken for float32


def test_halving_leaves_what_float16_cannot_hold():
    arrays = {"a": np.array([1.5], np.float32), "b": np.array([1e5], np.float32), "c": np.array([3], np.uint16)}
    kept = halved(Embedding(arrays, (1, 1)))
    assert sorted(array.dtype.name for array in kept.arrays.values()) == ["float16", "float32", "uint16"]
    again = restored(kept)
    assert {name: (array.dtype, array.tolist()) for name, array in again.arrays.items()} == {
        name: (array.dtype, array.tolist()) for name, array in arrays.items()
    }


async def test_an_image_of_too_many_pixels_is_refused_before_it_is_read(make_engine, tmp_path):
    segmenter = BoxSegmenter()
    image = image_file(tmp_path, 7)
    with refused(ImageError, "too_large", image[0], "20x10", "199"):
        await make_engine(segmenter, max_pixels=199).segment(*image, [BOX])
    assert len(await make_engine(segmenter, max_pixels=200).segment(*image, [BOX])) == 1


async def test_pillows_own_limit_is_an_image_error(make_engine, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with refused(ImageError, "unreadable_image", tmp_path / "7.png", "Image size (200 pixels)"):
        await make_engine(BoxSegmenter()).segment(*image_file(tmp_path, 7), [BOX])


async def test_a_digest_alone_is_enough_where_the_embedding_is_kept(make_engine, tmp_path):
    engine, (path, digest) = make_engine(BoxSegmenter(), cache_dir=tmp_path / "cache"), image_file(tmp_path, 7)
    with refused(UnknownImageError, "unknown_image", digest):
        await engine.segment(None, digest, [BOX])
    await engine.segment(path, digest, [BOX])
    assert len(await engine.segment(None, digest, [BOX])) == 1
    later = make_engine(BoxSegmenter(), cache_dir=tmp_path / "cache")
    assert len(await later.segment(None, digest, [BOX])) == 1


async def test_closing_cancels_what_waits(make_engine, tmp_path):
    segmenter = Noting()
    engine = make_engine(segmenter)
    asked = [asyncio.ensure_future(engine.segment(*image_file(tmp_path, grey), [BOX])) for grey in (1, 2)]
    await until(segmenter.begun.is_set)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    await until(lambda: engine.counters().queued == 2)  # the second encode, and the end before it
    segmenter.gate.set()
    await closing
    with pytest.raises(asyncio.CancelledError):
        await asked[1]
    with pytest.raises(RuntimeError, match="closed"):
        await engine.segment(tmp_path / "1.png", sha256_of(tmp_path / "1.png"), [Prompt((0, 0, 1, 1))])
    asked[0].cancel()
    assert engine.busy_seconds() == float("inf")
