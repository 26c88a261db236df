"""Servers that lie, never end or send bombs: the client refuses them in bounded memory and time; nothing is scored."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samr1_verl.config import HttpServiceConfig
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters.base import Embedding, Prediction, SegmenterError
from samr1_verl.service import client as client_module
from samr1_verl.service import engine as engine_module
from samr1_verl.service import http_client
from samr1_verl.service.engine import Engine
from samr1_verl.service.http_client import HttpClient
from samr1_verl.service.http_pool import Reply
from samr1_verl.service.retry import ServiceError
from tests.attack.hostile_server import Behaviour, answer, hostile_server
from tests.service.fake import BoxSegmenter, image_file

SIZE = (10, 20)
BOX = Prompt((2, 1, 8, 5))
MASK = np.zeros(SIZE, bool)
MASK[1:5, 2:8] = True
TRUTH = GroundTruth(size=SIZE, masks=(encode_rle(np.roll(MASK, 3, axis=1)),))
RIGHT = Overlap(PixelCounts(12, 36), 0.5)
COUNTS = {"intersection": 12, "union": 36, "ignored": 0, "ignored_predicted": 0, "iou": 1 / 3, "score": 0.5}
PREDICTION = {"score": 0.5, "mask": encode_rle(MASK)}
SOUND = {"segmenter": "boxes/1", "size": list(SIZE), "overlap": COUNTS, "predictions": [PREDICTION]}
MOST_BYTES = 20_000_000  # that a server can send before the client hangs up, the kernel's buffers included
REFUSED = {"error": {"code": "unknown_image", "message": "not here"}}


def client_of(*addresses: str, timeout_s: float = 1.0, attempt_s: float = 0.4, **options: Any) -> HttpClient:
    return HttpClient(HttpServiceConfig(addresses=addresses, **options), timeout_s, attempt_s)


def always(*pieces: bytes) -> Behaviour:
    return lambda line, body: pieces


def forever(*first: bytes, then: bytes, pause_s: float = 0.0) -> Behaviour:
    def behaviour(line: str, body: bytes) -> Iterator[bytes]:
        yield from first
        while True:
            yield then
            time.sleep(pause_s)

    return behaviour


def drip(content: bytes) -> Behaviour:
    def behaviour(line: str, body: bytes) -> Iterator[bytes]:
        for byte in content:
            yield bytes([byte])
            time.sleep(0.05)

    return behaviour


OK, MEGABYTE = b"HTTP/1.1 200 OK\r\n", b" " * 1_000_000
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
STREAMS: dict[str, Behaviour] = {
    "a body without end": forever(OK + b"\r\n", then=MEGABYTE),
    "chunks without end": forever(CHUNKED, then=b"f4240\r\n" + MEGABYTE + b"\r\n"),
    "a chunk's header without end": forever(CHUNKED + b"5;", then=b"x" * 65536),
    "a chunk of 10^15 bytes": forever(CHUNKED + b"38d7ea4c68000\r\n", then=MEGABYTE),
    "trailers without end": forever(CHUNKED + b"0\r\n", then=b"X-More: " + b"x" * 65536 + b"\r\n"),
    "an error's body without end": forever(b"HTTP/1.1 500 Oh\r\n\r\n", then=MEGABYTE),
    "a refusal's body without end": forever(b"HTTP/1.1 422 No\r\n\r\n", then=MEGABYTE),
    "a redirect's body without end": forever(b"HTTP/1.1 302 Go\r\nLocation: /v1\r\n\r\n", then=MEGABYTE),
    "a header without end": forever(OK + b"X: ", then=b"x" * 65536),
    "headers without end": forever(OK, then=b"X-More: " + b"x" * 1000 + b"\r\n"),
    "a status line without end": forever(b"HTTP/1.1 200 ", then=b"O" * 65536),
    "100 Continue without end": forever(then=b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, pause_s=0.01),
    "headers, byte by byte": drip(OK + b"X: " + b"x" * 1000),
    "a body, byte by byte": drip(answer(SOUND)),
    "an error, byte by byte": drip(answer(b"x" * 1000, "500 Oh")),
    "nothing": forever(then=b"", pause_s=0.05),
    "a gzip bomb": always(answer(gzip.compress(b" " * 50_000_000), "200 OK", "Content-Encoding: gzip")),
    "a sound answer, compressed": always(
        answer(gzip.compress(json.dumps(SOUND).encode()), "200 OK", "Content-Encoding: gzip")
    ),
    "an unknown encoding": always(answer(SOUND, "200 OK", "Content-Encoding: magic")),
    "a redirect to itself": always(answer(b"", "307 Go", "Location: /v1/segment")),
    "a redirect to a file": always(answer(b"", "302 Go", "Location: file:///etc/passwd")),
    "a redirect to nowhere": always(answer(b"", "302 Go", "Location: http://[")),
    "200,000 brackets": always(answer(b"[" * 200_000)),
    "brackets in the answer": always(answer(b'{"size":' + b"[" * 60_000)),
    "no JSON": always(answer(b"\xff\xfe\x00spam")),
    "no content": always(b"HTTP/1.1 204 None\r\n\r\n"),
    "two lengths": always(OK + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nspamm"),
    "a negative length": always(OK + b"Content-Length: -1\r\n\r\nspam"),
    "no HTTP": always(b"\x16\x03\x01\x02\x00" * 100),
    "HTTP/2's preface": always(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a switch of protocols": forever(b"HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\n", then=MEGABYTE),
}


@pytest.mark.parametrize("behaviour", STREAMS.values(), ids=STREAMS.keys())
async def test_a_stream_ends_at_the_limit_and_in_time_as_one_fault(behaviour: Behaviour, tmp_path: Path) -> None:
    with hostile_server(behaviour) as hostile:
        client, image = client_of(hostile.address, timeout_s=0.5, attempt_s=0.3), image_file(tmp_path, 7)
        await asyncio.to_thread(lambda: None)  # its thread is made before the memory is measured
        tracemalloc.start()
        started = time.monotonic()
        with pytest.raises(ServiceError, match="Such a fault never becomes a score"):
            await client.overlap(*image, [BOX], TRUTH)
        assert time.monotonic() - started < 20
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        tracemalloc.stop()
        attempts = len(hostile.asked)
        assert attempts >= 1 and hostile.sent < MOST_BYTES * attempts


def changed(**changes: Any) -> dict[str, Any]:
    """The sound answer, with other values in its overlap."""
    return SOUND | {"overlap": COUNTS | changes}


OVERLAPS: dict[str, Any] = {
    "an intersection above the union": changed(intersection=10**9, union=10),
    "a union above the image": changed(union=201),
    "a union above the image, without the ignored pixels": changed(union=150, ignored=60),
    "ignored pixels of a row that has none": changed(ignored=1),
    "more predicted than ignored": changed(ignored_predicted=1),
    "an empty union for a truth with pixels": changed(intersection=0, union=0, iou=0.0),
    "a negative count": changed(intersection=-1),
    "a fraction": changed(intersection=0.5),
    "text": changed(union="many"),
    "a number of 500 digits": changed(union=10**500),
    "an IoU of 2": changed(iou=2.0),
    "a score that is no number": changed(score=float("nan")),
    "an infinite score": changed(score=float("inf")),
    "no score": changed(score=None),
    "no overlap": SOUND | {"overlap": None},
    "another size": SOUND | {"size": [20, 10]},
    "no pixels": SOUND | {"size": [0, 20]},
    "a negative size": SOUND | {"size": [-10, -20]},
    "three sizes": SOUND | {"size": [10, 20, 3]},
    "no segmenter": {name: value for name, value in SOUND.items() if name != "segmenter"},
    "a segmenter without a name": SOUND | {"segmenter": ""},
    "an unknown key": SOUND | {"reward": 1.0},
    "a list": [SOUND],
    "null": None,
}
MASKS: dict[str, Any] = {
    "a mask of 30000x30000 in a few bytes": SOUND
    | {"size": [30000, 30000], "predictions": [{"score": 0.5, "mask": "0PTR\\Y6"}]},
    "a mask of another image": SOUND | {"size": [20, 10], "predictions": [PREDICTION]},
    "no masks": SOUND | {"predictions": None},
    "an empty list": SOUND | {"predictions": []},
    "two masks for one prompt": SOUND | {"predictions": [PREDICTION] * 2},
    "a mask that is too short": SOUND | {"predictions": [PREDICTION | {"mask": "11"}]},
    "a mask that is too long": SOUND | {"predictions": [PREDICTION | {"mask": encode_rle(np.ones((100, 100), bool))}]},
    "runs of no pixels": SOUND | {"predictions": [PREDICTION | {"mask": "0" * 1000}]},
    "more than the limit": SOUND | {"predictions": [PREDICTION | {"mask": "0" * 1_000_000}]},
    "a run of 60 bits": SOUND | {"predictions": [PREDICTION | {"mask": "o" * 100}]},
    "a negative run": SOUND | {"predictions": [PREDICTION | {"mask": "@@@@"}]},
    "other characters": SOUND | {"predictions": [PREDICTION | {"mask": "é~\n"}]},
    "a score that is no number": SOUND | {"predictions": [PREDICTION | {"score": float("nan")}]},
}


def first_at(client: HttpClient, address: str, folder: Path) -> tuple[Path, str]:
    """An image whose requests go to this address first."""
    images = (image_file(folder, grey) for grey in range(250))
    return next(image for image in images if client._order(image[1])[0] == address)


@pytest.mark.parametrize("wrong", OVERLAPS.values(), ids=OVERLAPS.keys())
async def test_a_wrong_overlap_is_a_fault_and_the_next_address_answers(wrong: Any, tmp_path: Path) -> None:
    with hostile_server(always(answer(wrong))) as hostile, hostile_server(always(answer(SOUND))) as sound:
        client = client_of(hostile.address, sound.address, timeout_s=30, attempt_s=10)
        assert await client.overlap(*first_at(client, hostile.address, tmp_path), [BOX], TRUTH) == RIGHT
        assert hostile.asked and len(sound.asked) == 1
        with pytest.raises(ServiceError):
            await client_of(hostile.address, timeout_s=0.2).overlap(*image_file(tmp_path, 7), [BOX], TRUTH)


@pytest.mark.parametrize("wrong", MASKS.values(), ids=MASKS.keys())
async def test_a_wrong_mask_is_a_fault_before_it_takes_memory(wrong: Any, tmp_path: Path) -> None:
    with hostile_server(always(answer(wrong))) as hostile, hostile_server(always(answer(SOUND))) as sound:
        client = client_of(hostile.address, sound.address, timeout_s=30, attempt_s=10)
        image = first_at(client, hostile.address, tmp_path)
        tracemalloc.start()
        (prediction,) = await client.segment(*image, [BOX])
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        tracemalloc.stop()
        np.testing.assert_array_equal(prediction.mask, MASK)
        assert hostile.asked and len(sound.asked) == 1


async def test_masks_of_an_image_that_only_the_server_reads_are_bounded_too(tmp_path: Path) -> None:
    bomb = MASKS["a mask of 30000x30000 in a few bytes"]
    with hostile_server(always(answer(bomb))) as hostile:
        client = client_of(hostile.address, timeout_s=0.2)
        with pytest.raises(ServiceError, match="1 masks of 30000x30000 pixels, the limit is"):
            await client.segment(tmp_path / "elsewhere.png", "a" * 64, [BOX])
    with hostile_server(always(answer(SOUND))) as sound:
        (prediction,) = await client_of(sound.address).segment(tmp_path / "elsewhere.png", "a" * 64, [BOX])
        np.testing.assert_array_equal(prediction.mask, MASK)


async def test_an_empty_union_is_right_where_every_true_pixel_is_ignored_or_none_is_true(tmp_path: Path) -> None:
    ignored = changed(intersection=0, union=0, ignored=24, ignored_predicted=24, iou=0.0)
    truth = GroundTruth(size=SIZE, masks=(encode_rle(MASK),), ignore=encode_rle(MASK))
    with hostile_server(always(answer(ignored))) as server:
        found = await client_of(server.address).overlap(*image_file(tmp_path, 7), [BOX], truth)
        assert found.pixels == PixelCounts(0, 0, 24, 24)
    with hostile_server(always(answer(changed(intersection=0, union=0, iou=0.0)))) as server:
        found = await client_of(server.address).overlap(
            *image_file(tmp_path, 7), [BOX], GroundTruth(size=SIZE, masks=())
        )
        assert found.pixels == PixelCounts(0, 0)


async def test_two_segmenters_are_never_mixed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = changed(intersection=1) | {"segmenter": "circles/2"}
    with hostile_server(always(answer(SOUND))) as one, hostile_server(always(answer(other))) as two:
        client = client_of(one.address, two.address, timeout_s=30, attempt_s=10)
        await client.overlap(*first_at(client, one.address, tmp_path), [BOX], TRUTH)
        images = [image_file(tmp_path, grey) for grey in range(16)]
        found = await asyncio.gather(*(client.overlap(*image, [BOX], TRUTH) for image in images))
        assert found == [RIGHT] * 16 and two.asked
        assert "its segmenter is circles/2, the run's is boxes/1" in caplog.text and two.address in caplog.text
        with pytest.raises(ServiceError, match="its segmenter is circles/2, the run's is boxes/1"):
            named = client_of(two.address, timeout_s=0.3, identity="boxes/1")
            await named.overlap(*image_file(tmp_path, 7), [BOX], TRUTH)
        named = client_of(one.address, two.address, timeout_s=30, attempt_s=10, identity="circles/2")
        found = await asyncio.gather(*(named.overlap(*image, [BOX], TRUTH) for image in images))
        assert [one.pixels.intersection for one in found] == [1] * 16


async def test_an_announcement_to_another_segmenter_is_a_fault(tmp_path: Path) -> None:
    accepted = {"segmenter": "circles/2", "accepted": True}
    with hostile_server(always(answer(accepted, "202 Accepted"))) as server:
        client = client_of(server.address, timeout_s=0.3, identity="boxes/1")
        with pytest.raises(ServiceError, match="circles/2"):
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
        with pytest.raises(ImageError, match="cannot be uploaded"):
            await client_of(server.address, timeout_s=30, attempt_s=20).overlap(make(tmp_path), sha256, [BOX], TRUTH)
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
        client = client_of(server.address, timeout_s=30, attempt_s=10)
        assert await client.overlap(*image, [BOX], TRUTH) == RIGHT
        uploads = [body for line, body in server.asked if line.startswith("PUT")]
        assert uploads == [image[0].read_bytes()] * 3
        assert not client._down, "the address is sound"


@pytest.mark.parametrize("status", ["422 No", "404 No", "403 No", "413 No"])
async def test_a_fault_of_the_image_is_not_tried_again(status: str, tmp_path: Path) -> None:
    with hostile_server(always(answer({"error": {"code": "image", "message": "no image"}}, status))) as server:
        with pytest.raises(ImageError, match="no image"):
            await client_of(server.address, timeout_s=30, attempt_s=10).overlap(*image_file(tmp_path, 7), [BOX], TRUTH)
        assert len(server.asked) == 1


@pytest.mark.parametrize("status", ["500 Oh", "503 Busy", "429 Slow", "408 Late"])
async def test_a_fault_of_the_server_is_tried_again(status: str, tmp_path: Path) -> None:
    fault = answer({"error": {"code": "segmenter", "message": "lost"}}, status)
    replies = iter([fault, fault, answer(SOUND)])
    with hostile_server(lambda line, body: [next(replies)]) as server:
        client = client_of(server.address, timeout_s=30, attempt_s=10)
        assert await client.overlap(*image_file(tmp_path, 7), [BOX], TRUTH) == RIGHT
        assert len(server.asked) == 3


async def test_cookies_of_a_server_are_not_kept(tmp_path: Path) -> None:
    numbers = itertools.count()

    def baking(line: str, body: bytes) -> list[bytes]:
        return [answer(SOUND, "200 OK", f"Set-Cookie: c{next(numbers)}={'x' * 3000}; Max-Age=9999")]

    with hostile_server(baking) as server:
        client = client_of(server.address, timeout_s=30, attempt_s=10)
        for _ in range(5):
            assert await client.overlap(*image_file(tmp_path, 7), [BOX], TRUTH) == RIGHT
        assert len((await client._pool.client()).cookies) == 0


class Hanging(BoxSegmenter):
    """Its encode or its decode waits until it is released."""

    def __init__(self, in_decode: bool) -> None:
        super().__init__()
        self.released, self._in_decode = threading.Event(), in_decode

    def encode(self, image: np.ndarray) -> Embedding:
        if not self._in_decode:
            self.released.wait(60)
        return super().encode(image)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        if self._in_decode:
            self.released.wait(60)
        return super().decode(embedding, prompts)


@pytest.mark.parametrize("in_decode", [False, True], ids=["encode", "decode"])
async def test_an_embedded_segmenter_that_hangs_is_a_fault_that_names_the_key(
    in_decode: bool, make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    segmenter = Hanging(in_decode)
    engine, image = make_engine(segmenter, timeout_s=0.5), image_file(tmp_path, 7)
    try:
        for first in (True, False):
            started = time.monotonic()
            with pytest.raises(SegmenterError, match=r"raise samr1\.segmenter\.service\.timeout_s"):
                await asyncio.gather(engine.overlap(*image, [BOX], TRUTH), engine.segment(*image, [BOX]))
            assert (time.monotonic() - started >= 0.4) == first, "later requests do not wait again"
            assert engine.busy_seconds() >= 0.5
    finally:
        segmenter.released.set()
    while engine.busy_seconds():
        await asyncio.sleep(0.01)
    assert await engine.overlap(*image, [BOX], TRUTH) == RIGHT


async def test_a_long_queue_of_short_computations_is_no_fault(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine, images = make_engine(BoxSegmenter(seconds=0.1), timeout_s=1.0), [image_file(tmp_path, n) for n in range(12)]
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


VALUES = [None, True, -1, 0, 1, 200, 201, 10**9, 2**63, 10**400, 0.5, 1e308, float("nan"), float("-inf"), "", "0", []]


def mutated(answered: dict[str, Any], draw: random.Random) -> bytes:
    """The answer with one to three values replaced, removed or added, or with bytes that are changed."""
    answered = deepcopy(answered)
    for _ in range(draw.randint(1, 3)):
        holder = draw.choice([answered, answered["overlap"], answered["predictions"][0]])
        if not isinstance(holder, dict):
            continue
        name = draw.choice([*holder, "more"])
        if draw.random() < 0.1 and name not in ("overlap", "predictions"):
            holder.pop(name, None)
        elif name not in ("overlap", "predictions"):
            holder[name] = draw.choice(VALUES)
    content = bytearray(json.dumps(answered).encode())
    if draw.random() < 0.3:
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


async def test_mutated_answers_are_sound_or_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, image = random.Random(13), image_file(tmp_path, 7)
    contents: list[bytes] = []

    async def read(*_: Any, **__: Any) -> Reply:
        return Reply(200, contents[-1])

    monkeypatch.setattr(http_client, "read", read)
    client, sound, faults = client_of("http://127.0.0.1:1", timeout_s=0.001, identity="boxes/1"), 0, 0
    for _ in range(400):
        contents.append(mutated(SOUND, draw))
        try:
            pixels = (await client.overlap(*image, [BOX], TRUTH)).pixels
            (prediction,) = await client.segment(*image, [BOX])
        except ServiceError:
            faults += 1
            continue
        sound += 1
        assert 0 <= pixels.intersection <= pixels.union <= 200 and pixels.union > 0
        assert pixels.ignored == pixels.ignored_predicted == 0
        assert prediction.mask.shape == SIZE and np.isfinite(prediction.score)
    assert sound > 20 and faults > 200
