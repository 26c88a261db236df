"""The engine: one encode an image, memory within its bound, faults as exceptions, sums of pixels that are right."""

from __future__ import annotations

import asyncio
import threading
from hashlib import sha256

import numpy as np
import pytest

from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import MaskError, encode_rle
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters import Prompt, SegmenterError
from samr1_verl.service.engine import Counters
from tests.errors import refused
from tests.masks import rectangle_in
from tests.service.fake import BoxSegmenter, image_file
from tests.waiting import until, wait_until

BOX = Prompt((2, 1, 8, 5))  # 6 x 4 pixels


async def test_eight_requests_for_a_new_image_cost_one_encode(make_engine, tmp_path):
    segmenter = BoxSegmenter()
    engine, (path, digest) = make_engine(segmenter), image_file(tmp_path, 7)
    segmenter.gate.clear()
    asked = asyncio.gather(*(engine.segment(path, digest, [BOX]) for _ in range(8)))
    await until(lambda: engine.counters().requests == 8)
    segmenter.gate.set()
    results = await asked
    assert segmenter.encoded == [(10, 20)]
    counters = engine.counters()
    assert counters == Counters(requests=8, encodes=1, decodes=counters.decodes, cached_bytes=4096)
    for (prediction,) in results:
        assert prediction.mask.sum() == 24 and prediction.mask[1:5, 2:8].all()


def test_requests_from_several_threads_and_loops_share_the_encode(make_engine, tmp_path):
    segmenter = BoxSegmenter()
    engine, (path, digest) = make_engine(segmenter), image_file(tmp_path, 7)
    segmenter.gate.clear()
    threads = [threading.Thread(target=lambda: asyncio.run(engine.segment(path, digest, [BOX, BOX]))) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: engine.counters().requests == 6)
    segmenter.gate.set()
    for thread in threads:
        thread.join()
    assert engine.counters().requests == 6 and engine.counters().encodes == 1
    assert len(segmenter.threads) == 1


async def test_the_event_loop_stays_free_while_the_segmenter_works(make_engine, tmp_path):
    segmenter = BoxSegmenter()
    engine, (path, digest) = make_engine(segmenter), image_file(tmp_path, 7)
    segmenter.gate.clear()
    request = asyncio.ensure_future(engine.segment(path, digest, [BOX]))
    await until(segmenter.begun.is_set)
    assert not request.done()
    segmenter.gate.set()
    await request


async def test_memory_is_bounded_and_the_least_recently_used_goes_first(make_engine, tmp_path):
    segmenter = BoxSegmenter(kilobytes=4)
    engine = make_engine(segmenter, cache_bytes=2 * 4096)
    first, second, third = (image_file(tmp_path, grey) for grey in (1, 2, 3))
    for image in (first, second, first, third):  # the third drives out the second
        await engine.segment(*image, [BOX])
        assert engine.counters().cached_bytes <= 2 * 4096
    assert len(segmenter.encoded) == 3
    await engine.segment(*first, [BOX])
    assert len(segmenter.encoded) == 3
    await engine.segment(*second, [BOX])
    assert len(segmenter.encoded) == 4
    assert engine.counters() == Counters(requests=6, encodes=4, hits=2, decodes=6, cached_bytes=2 * 4096)


async def test_an_embedding_larger_than_the_bound_is_used_and_not_kept(make_engine, tmp_path):
    segmenter = BoxSegmenter(kilobytes=4)
    engine, (path, digest) = make_engine(segmenter, cache_bytes=4095), image_file(tmp_path, 7)
    for _ in range(2):
        assert len(await engine.segment(path, digest, [BOX])) == 1
    assert engine.counters() == Counters(requests=2, encodes=2, decodes=2)


async def test_a_cancelled_request_does_not_take_the_encode_from_the_others(make_engine, tmp_path):
    segmenter = BoxSegmenter()
    engine, (path, digest) = make_engine(segmenter), image_file(tmp_path, 7)
    segmenter.gate.clear()
    first, second = (asyncio.ensure_future(engine.segment(path, digest, [BOX])) for _ in range(2))
    await until(segmenter.begun.is_set)
    first.cancel()
    await asyncio.sleep(0)
    segmenter.gate.set()
    assert len(await second) == 1
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_file_that_is_not_the_rows_image_is_refused(make_engine, tmp_path):
    segmenter = BoxSegmenter()
    engine, (path, digest) = make_engine(segmenter), image_file(tmp_path, 7)
    other = image_file(tmp_path, 8)[1]
    with refused(ImageError, "digest_differs", path, digest, other, "prepare the data"):
        await engine.segment(path, other, [BOX])
    assert segmenter.encoded == []
    assert len(await engine.segment(path, digest, [BOX])) == 1  # the engine goes on


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64])
async def test_a_digest_that_is_none_is_refused(make_engine, tmp_path, digest):
    path, _ = image_file(tmp_path, 7)
    with refused(ImageError, "malformed_digest", path, repr(digest)):
        await make_engine(BoxSegmenter(), cache_dir=tmp_path / "cache").segment(path, digest, [BOX])


async def test_a_missing_or_broken_image_is_named(make_engine, tmp_path):
    engine = make_engine(BoxSegmenter())
    with refused(ImageError, "no_such_image", tmp_path / "gone.png"):
        await engine.segment(tmp_path / "gone.png", "0" * 64, [BOX])
    (tmp_path / "text.png").write_text("no image")
    digest = sha256(b"no image").hexdigest()
    with refused(ImageError, "unreadable_image", tmp_path / "text.png"):
        await engine.segment(tmp_path / "text.png", digest, [BOX])


async def test_a_fault_of_the_segmenter_reaches_everyone_who_waits_and_is_not_kept(make_engine, tmp_path):
    segmenter = BoxSegmenter()
    engine, (path, digest) = make_engine(segmenter), image_file(tmp_path, 7)
    segmenter.fault = RuntimeError("out of memory")
    segmenter.gate.clear()
    asked = asyncio.gather(*(engine.segment(path, digest, [BOX]) for _ in range(3)), return_exceptions=True)
    await until(lambda: engine.counters().requests == 3)
    segmenter.gate.set()
    results = await asked
    assert [type(result) for result in results] == [SegmenterError] * 3
    assert {result.code for result in results} == {"encode_failed"}
    assert "7.png" in str(results[0]) and "out of memory" in str(results[0])
    assert len(segmenter.encoded) == 1
    segmenter.fault = None
    assert len(await engine.segment(path, digest, [BOX])) == 1
    segmenter.fault = RuntimeError("decoder lost")
    with refused(SegmenterError, "decode_failed", path, "decoder lost"):
        await engine.segment(path, digest, [BOX])


def truth_of(*masks: np.ndarray, ignore: np.ndarray | None = None) -> GroundTruth:
    return GroundTruth(
        size=masks[0].shape,
        masks=tuple(encode_rle(mask) for mask in masks),
        ignore=None if ignore is None else encode_rle(ignore),
    )


def rectangle(x1: int, y1: int, x2: int, y2: int, size: tuple[int, int] = (10, 20)) -> np.ndarray:
    return rectangle_in(size, x1, y1, x2, y2)


async def test_overlap_unites_objects_on_both_sides_and_leaves_ignored_pixels_out(make_engine, tmp_path):
    engine, (path, digest) = make_engine(BoxSegmenter()), image_file(tmp_path, 7)
    prompts = [Prompt((0, 0, 4, 4)), Prompt((2, 0, 6, 4))]  # united: 6 x 4 = 24 pixels
    truth = truth_of(rectangle(0, 0, 3, 4), rectangle(10, 0, 12, 4))  # 12 + 8 = 20 pixels
    found = await engine.overlap(path, digest, prompts, truth)
    assert found == Overlap(PixelCounts(12, 24 + 20 - 12), 0.5)
    ignoring = truth_of(rectangle(0, 0, 3, 4), rectangle(10, 0, 12, 4), ignore=rectangle(0, 0, 12, 1))
    found = await engine.overlap(path, digest, prompts, ignoring)  # one of four rows does not count
    assert found.pixels == PixelCounts(9, 18 + 15 - 9, ignored=12, ignored_predicted=6)


async def test_a_truth_of_another_size_is_refused(make_engine, tmp_path):
    engine, (path, digest) = make_engine(BoxSegmenter()), image_file(tmp_path, 7)
    with refused(MaskError, "size_differs", f"{path}: ground_truth.size", "20x10", "10x20 (HxW)"):
        await engine.overlap(path, digest, [BOX], truth_of(rectangle(0, 0, 3, 4, (20, 10))))
