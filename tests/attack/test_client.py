"""Servers that lie, never end or send bombs: the client refuses them in bounded memory and time; nothing is scored.

A request has two attempts here, so that no clock says how many there are.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.service import http_client
from samr1_verl.service.http_pool import Reply
from samr1_verl.service.retry import ServiceError
from tests.attack.client_world import (
    BOX,
    MASK,
    PREDICTION,
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
from tests.attack.hostile_server import Behaviour, answer, hostile_server
from tests.errors import refused
from tests.memory import memory_below
from tests.service.fake import image_file
from tests.waiting import GUARD_S, LoopClock, until

MOST_BYTES = 20_000_000  # that a server can send before the client hangs up, the kernel's buffers included


@pytest.fixture(autouse=True)
def two_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_attempts(2, monkeypatch)


def forever(*first: bytes, then: bytes, pause_s: float = 0.0) -> Behaviour:
    def behaviour(line: str, body: bytes) -> Iterator[bytes]:
        yield from first
        while True:
            yield then
            time.sleep(pause_s)

    return behaviour


def drip(content: bytes) -> Behaviour:
    """Byte by byte, and the last byte never."""

    def behaviour(line: str, body: bytes) -> Iterator[bytes]:
        for byte in content[:-1]:
            yield bytes([byte])
            time.sleep(0.05)
        yield from forever(then=b"", pause_s=0.05)(line, body)

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


UNTIL_TIME_ENDS = {  # the attempt; the client reads no more than a limit of all others
    "100 Continue without end",
    "headers, byte by byte",
    "a body, byte by byte",
    "an error, byte by byte",
    "nothing",
}


@pytest.mark.parametrize("timed", [False, True], ids=["at a limit", "in time"])
async def test_streams_end_each_as_one_fault(timed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, clock = image_file(tmp_path, 7), LoopClock(monkeypatch)
    streams = {name: stream for name, stream in STREAMS.items() if (name in UNTIL_TIME_ENDS) == timed}
    with ExitStack() as servers:
        hostile = {name: servers.enter_context(hostile_server(behaviour)) for name, behaviour in streams.items()}
        clients = {name: client_of(server.address) for name, server in hostile.items()}
        await asyncio.gather(*(client._pool.client() for client in clients.values()))  # reads certificates
        await asyncio.to_thread(lambda: None)  # its threads are made before the memory is measured
        with memory_below(2 * MOST_BYTES):  # of all together
            asked = (client.overlap(*image, [BOX], TRUTH) for client in clients.values())
            answers = asyncio.gather(*asked, return_exceptions=True)
            for attempt in (1, 2) if timed else ():
                await until(lambda attempt=attempt: all(len(server.asked) == attempt for server in hostile.values()))
                clock.put_forward(GUARD_S)
            found = dict(zip(clients, await asyncio.wait_for(answers, 3 * GUARD_S), strict=True))
        assert {name: type(one) for name, one in found.items()} == dict.fromkeys(streams, ServiceError)
        assert {name: len(server.asked) for name, server in hostile.items()} == dict.fromkeys(streams, 2)
        out_of_time = {name: bool(re.search(" no answer in |ReadTimeout", str(one))) for name, one in found.items()}
        assert out_of_time == dict.fromkeys(streams, timed)
        sent = {name: server.sent / 2 for name, server in hostile.items()}
        assert {name: bytes_ for name, bytes_ in sent.items() if bytes_ > MOST_BYTES} == {}


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


@pytest.mark.parametrize("wrong", OVERLAPS.values(), ids=OVERLAPS.keys())
async def test_a_wrong_overlap_is_a_fault_and_the_next_address_answers(wrong: Any, tmp_path: Path) -> None:
    with hostile_server(always(answer(wrong))) as hostile, hostile_server(always(answer(SOUND))) as sound:
        client = client_of(hostile.address, sound.address)
        assert await client.overlap(*first_at(client, hostile.address, tmp_path), [BOX], TRUTH) == RIGHT
        assert len(hostile.asked) == len(sound.asked) == 1
        with refused(ServiceError, "service_not_answering", "2 attempts"):
            await client_of(hostile.address).overlap(*image_file(tmp_path, 7), [BOX], TRUTH)


@pytest.mark.parametrize("wrong", MASKS.values(), ids=MASKS.keys())
async def test_a_wrong_mask_is_a_fault_before_it_takes_memory(wrong: Any, tmp_path: Path) -> None:
    with hostile_server(always(answer(wrong))) as hostile, hostile_server(always(answer(SOUND))) as sound:
        client = client_of(hostile.address, sound.address)
        image = first_at(client, hostile.address, tmp_path)
        with memory_below(MOST_BYTES):
            (prediction,) = await client.segment(*image, [BOX])
        np.testing.assert_array_equal(prediction.mask, MASK)
        assert len(hostile.asked) == len(sound.asked) == 1


async def test_masks_of_an_image_that_only_the_server_reads_are_bounded_too(tmp_path: Path) -> None:
    bomb = MASKS["a mask of 30000x30000 in a few bytes"]
    with hostile_server(always(answer(bomb))) as hostile:
        client = client_of(hostile.address)
        names = "elsewhere.png: ", "1 masks", "30000x30000 pixels", f"limit is {1 << 29}"
        with refused(ServiceError, "service_not_answering", *names):
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
    limit_attempts(1, monkeypatch)
    client, sound, faults = client_of("http://127.0.0.1:1", identity="boxes/1"), 0, 0
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
