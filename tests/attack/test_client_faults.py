"""Faults of a service that its clients survive: another segmenter, dropped uploads, wrong files, one that hangs."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samr1_verl.config import segmenter_config
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.segmenters.base import Embedding, Prediction, SegmenterError
from samr1_verl.service import client as client_module
from samr1_verl.service import engine as engine_module
from samr1_verl.service import worker
from samr1_verl.service.engine import Engine
from samr1_verl.service.ray_client import RayClient
from samr1_verl.service.retry import ServiceError
from tests.attack.client_world import (
    BOX,
    MASK,
    RIGHT,
    SIZE,
    SOUND,
    TRUTH,
    always,
    changed,
    client_of,
    first_at,
    limit_attempts,
)
from tests.attack.hostile_server import answer, hostile_server
from tests.errors import refused
from tests.service.fake import BoxSegmenter, image_file
from tests.waiting import GUARD_S, LoopClock, until

REFUSED = {"error": {"code": "unknown_image", "message": "not here"}}


async def test_two_segmenters_are_never_mixed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_attempts(2, monkeypatch)
    other = changed(intersection=1) | {"segmenter": "circles/2"}
    with hostile_server(always(answer(SOUND))) as one, hostile_server(always(answer(other))) as two:
        client = client_of(one.address, two.address)
        await client.overlap(*first_at(client, one.address, tmp_path), [BOX], TRUTH)
        images = [image_file(tmp_path, grey) for grey in range(16)]
        found = await asyncio.gather(*(client.overlap(*image, [BOX], TRUTH) for image in images))
        assert found == [RIGHT] * 16 and two.asked
        assert all(name in caplog.text for name in ("circles/2", "boxes/1", two.address)), caplog.text
        with refused(ServiceError, "service_not_answering", "7.png: ", two.address, "circles/2", "boxes/1"):
            named = client_of(two.address, identity="boxes/1")
            await named.overlap(*image_file(tmp_path, 7), [BOX], TRUTH)
        named = client_of(one.address, two.address, identity="circles/2")
        found = await asyncio.gather(*(named.overlap(*image, [BOX], TRUTH) for image in images))
        assert [one.pixels.intersection for one in found] == [1] * 16


async def test_an_announcement_to_another_segmenter_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_attempts(2, monkeypatch)
    accepted = {"segmenter": "circles/2", "accepted": True}
    with hostile_server(always(answer(accepted, "202 Accepted"))) as server:
        client = client_of(server.address, identity="boxes/1")
        with refused(ServiceError, "service_not_answering", "7.png: ", "circles/2"):
            await client.prefetch(*image_file(tmp_path, 7))


def _secret(folder: Path) -> Path:
    (folder / "secret").write_text("root:x:0:0")
    return folder / "secret"


def _link(folder: Path) -> Path:
    (folder / "link.png").symlink_to(_secret(folder))
    return folder / "link.png"


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo.png")
    return folder / "fifo.png"


FILES: dict[str, Callable[[Path], Path]] = {
    "a file that is no row's": _secret,
    "a link to one": _link,
    "a FIFO": _fifo,
    "a device": lambda folder: Path("/dev/zero"),
    "a folder": lambda folder: folder,
    "a file of the system": lambda folder: Path("/etc/passwd"),
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES.keys())
async def test_only_the_rows_own_file_is_uploaded(make: Callable[[Path], Path], tmp_path: Path) -> None:
    _, sha256 = image_file(tmp_path, 7)
    with hostile_server(always(answer(REFUSED, "404 Not Found"))) as server:
        path = make(tmp_path)
        with refused(ImageError, "image_not_uploaded", path, "uploaded"):
            await client_of(server.address).overlap(path, sha256, [BOX], TRUTH)
        assert [line.split()[0] for line, _ in server.asked] == ["POST"]


async def test_an_upload_that_the_server_drops_is_uploaded_again(tmp_path: Path) -> None:
    image, dropped = image_file(tmp_path, 7), [True, True, False]

    def evicting(line: str, body: bytes) -> list[bytes]:
        if line.startswith("PUT"):
            kept.append(dropped.pop(0))
            return [answer({"segmenter": "boxes/1", "sha256": image[1], "size": list(SIZE)}, "201 Created")]
        return [answer(SOUND)] if kept[-1:] == [False] else [answer(REFUSED, "404 Not Found")]

    kept: list[bool] = []
    with hostile_server(evicting) as server:
        client = client_of(server.address)
        assert await client.overlap(*image, [BOX], TRUTH) == RIGHT
        uploads = [body for line, body in server.asked if line.startswith("PUT")]
        assert uploads == [image[0].read_bytes()] * 3
        assert not client._down, "the address is sound"


@pytest.mark.parametrize("status", ["422 No", "404 No", "403 No", "413 No"])
async def test_a_fault_of_the_image_is_not_tried_again(status: str, tmp_path: Path) -> None:
    with hostile_server(always(answer({"error": {"code": "image", "message": "no image"}}, status))) as server:
        with refused(ImageError, "server_refuses_image", "7.png: no image"):
            await client_of(server.address).overlap(*image_file(tmp_path, 7), [BOX], TRUTH)
        assert len(server.asked) == 1


@pytest.mark.parametrize("status", ["500 Oh", "503 Busy", "429 Slow", "408 Late"])
async def test_a_fault_of_the_server_is_tried_again(status: str, tmp_path: Path) -> None:
    fault = answer({"error": {"code": "segmenter", "message": "lost"}}, status)
    replies = iter([fault, fault, answer(SOUND)])
    with hostile_server(lambda line, body: [next(replies)]) as server:
        client = client_of(server.address)
        assert await client.overlap(*image_file(tmp_path, 7), [BOX], TRUTH) == RIGHT
        assert len(server.asked) == 3


async def test_cookies_of_a_server_are_not_kept(tmp_path: Path) -> None:
    numbers = itertools.count()

    def baking(line: str, body: bytes) -> list[bytes]:
        return [answer(SOUND, "200 OK", f"Set-Cookie: c{next(numbers)}={'x' * 3000}; Max-Age=9999")]

    with hostile_server(baking) as server:
        client = client_of(server.address)
        for _ in range(5):
            assert await client.overlap(*image_file(tmp_path, 7), [BOX], TRUTH) == RIGHT
        assert len((await client._pool.client()).cookies) == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which a computation is measured."""
    now = [100.0]
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize("hung", ["encode", "decode"])
async def test_an_embedded_segmenter_that_hangs_is_a_fault_that_names_the_key(
    hung: str, clock: list[float], make_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, begun, gate = BoxSegmenter(), threading.Event(), threading.Event()
    compute = getattr(segmenter, hung)
    monkeypatch.setattr(segmenter, hung, lambda *given: begun.set() or (gate.wait(GUARD_S) and compute(*given)))
    engine, image = make_engine(segmenter, timeout_s=1000.0), image_file(tmp_path, 7)
    loop_clock = LoopClock(monkeypatch)

    async def ask() -> None:
        await asyncio.gather(engine.overlap(*image, [BOX], TRUTH), engine.segment(*image, [BOX]))

    try:
        first = asyncio.create_task(ask())
        await until(begun.is_set)
        assert not first.done()
        clock[0] += 1000
        loop_clock.put_forward(1000)
        for asked in (first, ask()):  # for the second the clocks stand still: it does not wait
            with refused(SegmenterError, "segmenter_stuck", "boxes/1: ", "1000 s", "samr1.segmenter.service.timeout_s"):
                await asyncio.wait_for(asked, GUARD_S)
        assert engine.busy_seconds() == 1000
    finally:
        gate.set()
    await until(lambda: not engine.busy_seconds())
    assert await engine.overlap(*image, [BOX], TRUTH) == RIGHT


async def test_a_long_queue_of_short_computations_is_no_fault(
    clock: list[float], make_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, images = BoxSegmenter(seconds=0.05), [image_file(tmp_path, grey) for grey in range(12)]
    engine, encode = make_engine(segmenter, timeout_s=0.5), segmenter.encode

    def slowly(image: np.ndarray) -> Embedding:
        clock[0] += 0.4
        return encode(image)

    monkeypatch.setattr(segmenter, "encode", slowly)
    found = await asyncio.gather(*(engine.overlap(*image, [BOX], TRUTH) for image in images))
    assert found == [RIGHT] * 12


def test_the_recipes_limit_reaches_the_embedded_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "load_segmenter", lambda config: BoxSegmenter())
    monkeypatch.setattr(client_module, "_clients", {})
    service = {"mode": "embedded", "cache_gb": 1, "cache_dir": None, "timeout_s": 7.0}
    segmenter = {"backend": "onnx", "path": "w", "device": "cpu", "dtype": "float32", "service": service}
    client = client_module.get_client(segmenter)
    assert isinstance(client, Engine) and client._timeout_s == 7.0
    client.close()


RAY_ANSWERS: dict[str, tuple[Any, Any]] = {
    "impossible counts": (Overlap(PixelCounts(10**9, 10), 0.5), [Prediction(MASK, float("nan"))]),
    "an empty union": (Overlap(PixelCounts(0, 0), 0.5), []),
    "no number": (Overlap(PixelCounts(12, 36), float("inf")), [Prediction(MASK, 0.5)] * 2),
    "pixels that are no bool": (Overlap(PixelCounts(-1, 36), 0.5), [Prediction(MASK.astype(np.uint8), 0.5)]),
    "nothing": (None, None),
}


@pytest.mark.parametrize(("overlap", "predictions"), RAY_ANSWERS.values(), ids=RAY_ANSWERS.keys())
async def test_a_replicas_wrong_answer_is_a_fault_and_the_next_attempt_answers(
    overlap: Any, predictions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = {"mode": "ray", "cache_gb": 1, "cache_dir": None, "timeout_s": 2 * GUARD_S}
    service |= {"ray": {"gpus": 0, "cpus": 0, "min_replicas": 1, "max_replicas": 1}}
    client = RayClient(
        segmenter_config({"backend": "onnx", "path": "w", "device": "cpu", "dtype": "float32", "service": service})
    )
    answers = iter([[overlap], [], [RIGHT, RIGHT], [RIGHT], [predictions], [[Prediction(MASK, 0.5)]]])

    async def request(*_: Any) -> list[Any]:
        return next(answers)

    monkeypatch.setattr(client, "_request", request)
    image = image_file(tmp_path, 7)
    assert await client.overlap(*image, [BOX], TRUTH) == RIGHT
    (prediction,) = await client.segment(*image, [BOX])
    np.testing.assert_array_equal(prediction.mask, MASK)
    assert next(answers, None) is None
