"""Requests whose text is short and whose work is long: memory, the segmenter's thread and the event loop stay free."""

from __future__ import annotations

import asyncio
import json
import threading
import tracemalloc
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from samr1_verl.geometry.masks import MaskError, decode_rle, encode_rle, mask_of_runs, union_rle
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows import ground_truth
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.service.guard import MAX_JSON
from samr1_verl.service.http_server import Limits, create_app
from tests.errors import refused
from tests.service.fake import BoxSegmenter, image_file
from tests.waiting import GUARD_S, until

LARGE = (3000, 4000)  # 12 megapixels


@pytest.fixture
def engine(make_engine):
    return make_engine(BoxSegmenter())


@pytest.fixture
def server(engine, tmp_path):
    app = create_app(engine, [tmp_path], None, Limits())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=GUARD_S)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, str]:
    return image_file(tmp_path_factory.mktemp("large"), 7, LARGE)


def boxes(count: int) -> list[tuple[float, float, float, float]]:
    return [(10 * index, 20, 10 * index + 15, 2900) for index in range(count)]


def union_of_boxes(count: int) -> np.ndarray:
    mask = np.zeros(LARGE, bool)
    mask[20:2900, : 10 * (count - 1) + 15] = True
    return mask


async def peak_of(work: Awaitable[Any]) -> tuple[Any, int]:
    """The result, and the largest memory beyond that before."""
    tracemalloc.start()
    try:
        result = await work
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_the_overlap_of_32_large_masks_takes_the_memory_of_few(engine, large):
    path, digest = large
    truth = GroundTruth(size=LARGE, masks=(encode_rle(union_of_boxes(32)),))
    prompts = [Prompt(box) for box in boxes(32)]
    await engine.size(path, digest)
    overlap, peak = await peak_of(engine.overlap(path, digest, prompts, truth))
    assert overlap.pixels.intersection == overlap.pixels.union == union_of_boxes(32).sum() and overlap.score == 0.5
    assert peak < 150_000_000  # all masks together have 384 MB


async def test_32_large_masks_in_an_answer_take_the_memory_of_few(server, large, tmp_path):
    path, digest = image_file(tmp_path, 7, LARGE)
    request = {"image": {"path": str(path), "sha256": digest}, "prompts": [{"box": box} for box in boxes(32)]}
    await server.post("/v1/prefetch", json={"image": request["image"]})
    answer, peak = await peak_of(server.post("/v1/segment", json=request | {"masks": True}))
    masks = [one["mask"] for one in answer.json()["predictions"]]
    assert len(masks) == 32 and decode_rle(masks[31], LARGE)[:, 310:325].sum() == 15 * 2880
    assert peak < 200_000_000


async def test_a_thousand_true_masks_in_a_short_text_do_not_hold_the_segmenter(engine, large, monkeypatch):
    path, digest = large
    counts = encode_rle(union_of_boxes(3))
    truth = GroundTruth(size=LARGE, masks=(counts,) * 1000)
    assert len(counts) < 200
    await engine.size(path, digest)
    decoded: list[Any] = []
    monkeypatch.setattr(ground_truth, "mask_of_runs", lambda *given: decoded.append(given) or mask_of_runs(*given))
    overlap = await engine.overlap(path, digest, [Prompt(boxes(1)[0])], truth)
    assert overlap.pixels.union == union_of_boxes(3).sum()
    assert len(decoded) == 1, "their union; 20 s with a decode of each mask"


async def test_long_true_masks_are_read_while_the_segmenter_computes(engine, tmp_path, monkeypatch):
    path, digest = image_file(tmp_path, 7)
    truth = GroundTruth(size=(10, 20), masks=("0" * 2_000_000,))  # runs of no pixels
    runs_of, reads, answered = GroundTruth.runs, threading.Event(), threading.Event()

    def slowly(read: GroundTruth) -> Any:
        reads.set()
        assert read is not truth or answered.wait(GUARD_S)
        return runs_of(read)

    monkeypatch.setattr(GroundTruth, "runs", slowly)
    await engine.size(path, digest)
    hostile = asyncio.create_task(engine.overlap(path, digest, [Prompt((1, 1, 5, 5))], truth))
    await until(reads.is_set)
    sound = GroundTruth(size=(10, 20), masks=(encode_rle(np.ones((10, 20), bool)),))
    assert (await engine.overlap(path, digest, [Prompt((1, 1, 5, 5))], sound)).pixels.intersection == 16
    answered.set()
    with refused(MaskError, "undecodable_rle", path, "ground_truth.masks", "0 pixels", "10x20"):
        await hostile


def test_the_union_of_runs_is_the_union_of_masks():
    random = np.random.default_rng(13)
    for _ in range(500):
        height, width, count = random.integers(1, 9), random.integers(1, 9), random.integers(0, 5)
        masks = [random.random((height, width)) < random.choice([0, 0.1, 0.5, 0.9, 1]) for _ in range(count)]
        union = union_rle([encode_rle(mask) for mask in masks], (height, width))
        assert (union == np.logical_or.reduce([np.zeros((height, width), bool), *masks])).all()


def hostile_texts() -> dict[str, str]:
    image = json.dumps({"sha256": "0" * 64})
    room = MAX_JSON - 1000
    start = f'{{"image": {image}, "prompts": [{{"box": [1, 1, 2, 2]}}], "truth": '
    return {
        "brackets": "[" * room,
        "objects": '{"a":' * (room // 5),
        "empty lists": "[" + ",".join(["[]"] * (room // 3)) + "]",
        "keys": "{" + ",".join(f'"{key:x}":0' for key in range(room // 12)) + "}",
        "keys of a prompt": f'{{"image": {image}, "prompts": [{{'
        + ",".join(f'"{key:x}":0' for key in range(room // 12))
        + "}]}",
        "prompts": f'{{"image": {image}, "prompts": [' + ",".join(["1"] * (room // 2)) + "]}",
        "masks": start + '{"size": [10, 20], "masks": [' + ",".join(["1"] * (room // 2)) + "]}}",
        "points": start + '{"size": [10, 20], "masks": [], "points": [' + ",".join(["[1]"] * (room // 4)) + "]}}",
        "boxes": start + '{"size": [10, 20], "masks": [], "boxes": [' + ",".join(["[]"] * (room // 3)) + "]}}",
        "a long number": f'{{"image": {image}, "prompts": [{{"box": [{"9" * (room // 2)}, 1, 2, 2]}}]}}',
        "a long text": f'{{"image": {{"sha256": "{"a" * (room // 2)}"}}, "prompts": []}}',
        "numbers": f'{{"image": {image}, "prompts": [{{"points": [' + ",".join(["[1e9,1]"] * (room // 8)) + "]}]}",
    }


@pytest.mark.parametrize("kind", hostile_texts())
async def test_of_two_megabytes_of_json_only_the_sound_part_is_built(server, kind):
    """The event loop is held up for as long as values are made, so their memory tells."""
    text = hostile_texts()[kind].encode()
    answer, peak = await peak_of(server.post("/v1/segment", content=text, headers={"Content-Type": "application/json"}))
    assert answer.status_code in (400, 422) and answer.json()["error"]["code"] == "request"
    assert len(answer.content) < 4000
    # The text itself is there a few times. All its numbers are as many points as a sound request may have.
    assert peak < (100_000_000 if kind == "numbers" else 5 * len(text)), peak


async def test_more_than_two_megabytes_of_json_are_refused_announced_or_not(server):
    text = b" " * (MAX_JSON + 1)

    async def chunks():
        for start in range(0, len(text), 1_000_000):
            yield text[start : start + 1_000_000]

    for content in (text, chunks()):
        answer = await server.post("/v1/segment", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert Limits().max_body > MAX_JSON  # an upload may be larger


async def test_large_bodies_that_wait_share_a_limit_and_small_ones_pass(server, monkeypatch, tmp_path):
    monkeypatch.setattr("samr1_verl.service.guard.MAX_BODIES", 1_000_000)
    path, digest = image_file(tmp_path, 7)
    sound = {"image": {"path": str(path), "sha256": digest}, "prompts": [{"box": [2, 1, 8, 5]}], "masks": True}
    begun, rest = asyncio.Event(), asyncio.Event()

    async def half():
        yield b"{" + b" " * 900_000
        begun.set()
        await rest.wait()
        yield b"}"

    json_type = {"Content-Type": "application/json"}
    waiting = asyncio.create_task(server.post("/v1/segment", content=half(), headers=json_type))
    await begun.wait()
    refusal = await server.post("/v1/segment", content=b" " * 900_000, headers=json_type)
    assert refusal.status_code == 503 and refusal.headers["retry-after"] == "1"
    assert refusal.json()["error"]["code"] == "busy"
    assert (await server.post("/v1/segment", json=sound)).status_code == 200
    rest.set()
    assert (await waiting).status_code == 422
    assert (await server.post("/v1/segment", content=b" " * 900_000, headers=json_type)).status_code == 422
