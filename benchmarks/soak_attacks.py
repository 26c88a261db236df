"""Hostile traffic for the soak test: each function sends one request that a server must refuse, or must survive."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import random
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.soak_servers import TOKEN

BUSY = "503"  # the queue is full
WAIT_S = 90.0  # maximum time for the answer to a hostile request: a server that is busy answers late
Attack = Callable[[str, random.Random], Awaitable[str]]  # address, random → outcome


async def _send(address: str, content: bytes, wait_s: float = WAIT_S) -> str:
    """Send bytes as they are. Returns the status of the answer, or `closed` where the server ends the connection."""
    place = urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(content)
            await writer.drain()
        line = await asyncio.wait_for(reader.readline(), wait_s)
        return line.split(b" ")[1].decode() if line.startswith(b"HTTP/1.1 ") else "closed"
    except ConnectionError:
        return "closed"
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def _request(method: str, path: str, body: bytes, kind: str = "application/json", token: str = TOKEN) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def _segment(value: Any) -> bytes:
    return _request("POST", "/v1/segment", value if isinstance(value, bytes) else json.dumps(value).encode())


def _upload(content: bytes, digest: str) -> bytes:
    return _request("PUT", f"/v1/images/{digest}", content, "application/octet-stream")


async def bad_json(address: str, draw: random.Random) -> str:
    return await _send(address, _segment(draw.choice([b"{", b"[" * 200_000, b"\xff" * 100, b'{"image": 1e400}', b""])))


async def outside(address: str, draw: random.Random) -> str:
    path = draw.choice(["/etc/passwd", "../../etc/passwd", "\0", "a" * 5000, "/dev/zero", "."])
    value = {"image": {"path": path, "sha256": "0" * 64}, "prompts": [{"box": [0, 0, 9, 9]}], "masks": True}
    return await _send(address, _segment(value))


async def many_prompts(address: str, draw: random.Random) -> str:
    prompts = [{"box": [0, 0, 9, 9]}] * draw.choice([300, 20_000])
    return await _send(address, _segment({"image": {"sha256": "0" * 64}, "prompts": prompts, "masks": True}))


async def wrong_token(address: str, draw: random.Random) -> str:
    return await _send(address, _request("POST", "/v1/segment", b"{}", token=draw.choice(["", "no", "x" * 5000])))


async def wrong_digest(address: str, draw: random.Random) -> str:
    return await _send(address, _upload(draw.randbytes(50_000), "ab" * 32))


async def bomb(address: str, draw: random.Random) -> str:
    """An image of 30,000 x 30,000 pixels in a few bytes, or 4 MB of text in a PNG."""
    if draw.random() < 0.5:
        data = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + data
        content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    else:
        text, file = PngInfo(), io.BytesIO()
        text.add_text("a", "b" * 64_000_000, zip=True)
        Image.new("L", (8, 8)).save(file, "PNG", pnginfo=text)
        content = file.getvalue()
    return await _send(address, _upload(content, hashlib.sha256(content).hexdigest()))


async def not_an_image(address: str, draw: random.Random) -> str:
    content = draw.choice([b"%!PS-Adobe-3.0 EPSF-3.0\n", b"DDS ", b"GIF89a", b"II*\0"]) + draw.randbytes(2000)
    return await _send(address, _upload(content, hashlib.sha256(content).hexdigest()))


async def long_header(address: str, draw: random.Random) -> str:
    return await _send(address, b"GET /health HTTP/1.1\r\nX: " + b"a" * 2_000_000)


async def half_open(address: str, draw: random.Random) -> str:
    """A request that never ends; the server must close the connection."""
    header = b"POST /v1/segment HTTP/1.1\r\nHost: lo"
    return await _send(address, draw.choice([header, _segment({"image": 1})[:-5], _upload(b"x" * 999, "0" * 64)[:-9]]))


async def slow_body(address: str, draw: random.Random) -> str:
    """A body that comes byte by byte."""
    place = urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(_segment(b" " * 5000)[:-5000])
        for _ in range(int(WAIT_S)):
            writer.write(b"{")
            await writer.drain()
            with contextlib.suppress(asyncio.TimeoutError):
                line = await asyncio.wait_for(reader.readline(), 1)
                return line.split(b" ")[1].decode() if line.startswith(b"HTTP/1.1 ") else "closed"
        return "still open"
    except ConnectionError:
        return "closed"
    finally:
        writer.close()


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        bad_json, outside, many_prompts, wrong_token, wrong_digest, bomb, not_an_image, long_header, half_open,
        slow_body,
    )
}  # fmt: skip


def survived(outcome: str) -> bool:
    """Whether the server refused: with a status of the caller's fault, or by closing the connection."""
    return outcome == "closed" or outcome.startswith("4")
