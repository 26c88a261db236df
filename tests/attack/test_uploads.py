"""Uploads under pressure: nothing that a request needs is removed, and the limit of all uploads holds."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import threading
import zlib
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from samr1_verl.config import HttpServiceConfig
from samr1_verl.geometry.images import ImageError
from samr1_verl.segmenters import Prompt
from samr1_verl.service.embeddings import UnknownImageError
from samr1_verl.service.http_client import HttpClient
from samr1_verl.service.http_server import Limits, create_app
from samr1_verl.service.images import Images
from tests.errors import refused
from tests.service.fake import BoxSegmenter, image_file
from tests.service.servers import free_port
from tests.waiting import GUARD_S, until

BYTES = 3000  # at most, of each image here


def noise(seed: int) -> tuple[str, bytes]:
    """Digest and bytes of a PNG of about 2.8 kB."""
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert 2500 < len(buffer.getvalue()) < BYTES
    return sha256(buffer.getvalue()).hexdigest(), buffer.getvalue()


@pytest.fixture
def serve(make_engine, tmp_path):
    def make(
        segmenter: BoxSegmenter, uploads: int, cache_bytes: int = 1, root: Path | None = None
    ) -> httpx.AsyncClient:
        roots = [] if root is None else [root]
        app = create_app(make_engine(segmenter, cache_bytes), roots, None, Limits(upload_bytes=uploads))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    return make


def request_of(digest: str) -> dict:
    return {"image": {"sha256": digest}, "prompts": [{"box": [2, 1, 8, 5]}], "masks": True}


async def upload(server: httpx.AsyncClient, digest: str, content: bytes) -> httpx.Response:
    return await server.put(f"/v1/images/{digest}", content=content)


async def ask(server: httpx.AsyncClient, digest: str, content: bytes) -> int:
    """Ask about an image until the answer is final, as the client does; returns the number of uploads."""
    uploads = 0
    while True:
        answer = await server.post("/v1/segment", json=request_of(digest))
        if answer.status_code == 404:
            answer = await upload(server, digest, content)
            uploads += answer.status_code == 201
        elif answer.status_code == 200:
            return uploads
        assert answer.status_code in (201, 503), answer.text
        await asyncio.sleep(0.01)


async def test_ten_requests_beyond_the_limit_of_uploads_are_all_answered(serve):
    async with serve(BoxSegmenter(seconds=0.01), uploads=2 * BYTES, cache_bytes=50_000) as server:
        images = [noise(seed) for seed in range(10)]
        counts = await asyncio.wait_for(asyncio.gather(*(ask(server, *image) for image in images)), GUARD_S)
        assert counts == [1] * 10


async def test_an_upload_stays_until_its_embedding_is_made(serve):
    segmenter = BoxSegmenter()
    segmenter.gate.clear()
    async with serve(segmenter, uploads=2 * BYTES, cache_bytes=20_000) as server:
        (one, first), (two, second), (three, third) = map(noise, range(3))
        assert (await upload(server, one, first)).status_code == 201
        assert (await upload(server, two, second)).status_code == 201
        refusal = await upload(server, three, third)
        assert refusal.status_code == 503 and refusal.headers["retry-after"] == "1"
        assert refusal.json()["error"]["code"] == "busy" and "--upload-gb" in refusal.json()["error"]["message"]
        segmenter.gate.set()
        answers = await asyncio.gather(*(server.post("/v1/segment", json=request_of(digest)) for digest in (one, two)))
        assert [answer.status_code for answer in answers] == [200, 200]
        assert (await upload(server, three, third)).status_code == 201


async def test_the_part_of_a_running_upload_is_not_removed_and_counts(serve):
    async with serve(BoxSegmenter(), uploads=2 * BYTES) as server:
        slow, begun, rest = noise(0), asyncio.Event(), asyncio.Event()

        async def in_two_parts() -> AsyncIterator[bytes]:
            yield slow[1][:2000]
            begun.set()
            await rest.wait()
            yield slow[1][2000:]

        running = asyncio.create_task(server.put(f"/v1/images/{slow[0]}", content=in_two_parts()))
        await begun.wait()
        for seed in range(1, 6):
            image = noise(seed)
            assert await asyncio.wait_for(ask(server, *image), GUARD_S) == 1
        rest.set()
        assert (await running).status_code == 201
        assert (await server.post("/v1/segment", json=request_of(slow[0]))).status_code == 200


async def test_the_folder_never_exceeds_the_limit(serve, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limit, largest = 3 * BYTES, 0
    async with serve(BoxSegmenter(seconds=0.02), uploads=limit) as server:
        (folder,) = tmp_path.glob("samr1_uploads_*")
        work = [asyncio.create_task(ask(server, *noise(seed))) for seed in range(12)]
        while not all(task.done() for task in work):
            sizes = []
            for entry in os.scandir(folder):
                try:
                    sizes.append(entry.stat().st_size)
                except FileNotFoundError:
                    continue
            largest = max(largest, sum(sizes))
            await asyncio.sleep(0)
        await asyncio.gather(*work)
    assert 2 * 2500 < largest <= limit


async def test_an_upload_larger_than_all_may_be_is_refused_for_good(serve):
    async with serve(BoxSegmenter(), uploads=1000) as server:
        answer = await upload(server, *noise(0))
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


async def test_what_is_uploaded_twice_is_kept_once(serve):
    segmenter = BoxSegmenter()
    segmenter.gate.clear()
    async with serve(segmenter, uploads=BYTES) as server:
        image = noise(0)
        for _ in range(3):  # the second and third while the embedding is made
            answer = await upload(server, *image)
            assert answer.status_code == 201 and answer.json()["size"] == [30, 30]
        segmenter.gate.set()


async def test_a_refused_upload_leaves_nothing_behind(serve, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with serve(BoxSegmenter(), uploads=BYTES) as server:
        digest, content = noise(0)
        for wrong in (content[:-1], b"", content[:1000]):
            assert (await upload(server, digest, wrong)).status_code == 422
        for text in (b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"):
            assert (await upload(server, sha256(text).hexdigest(), text)).status_code == 422
        assert list(next(tmp_path.glob("samr1_uploads_*")).iterdir()) == []
        assert (await upload(server, digest, content)).status_code == 201


async def test_an_upload_that_is_removed_while_its_encode_waits_is_asked_for_again(tmp_path):
    images = Images([], 10_000, 10_000)
    with refused(UnknownImageError, "upload_gone", "0" * 64, "Upload it again"):
        async with images.use(None, "0" * 64) as path:
            assert path is None
            raise ImageError("no_such_image", "gone", "no such image")
    images._folder.cleanup()


async def test_a_file_that_the_server_may_not_read_is_asked_for(serve, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    path, digest = image_file(root, 7)
    os.mkfifo(root / "fifo.png")
    (root / "folder.png").mkdir()
    path.chmod(0)
    async with serve(BoxSegmenter(), uploads=10_000, cache_bytes=20_000, root=root) as server:
        for name in ("7.png", "fifo.png", "folder.png", "/".join(["x" * 300] * 3)):
            request = request_of(digest) | {"image": {"sha256": digest, "path": name}}
            own = os.geteuid()
            if own == 0:
                os.seteuid(65534)  # root reads everything
            try:
                answer = await asyncio.wait_for(server.post("/v1/segment", json=request), GUARD_S)
            finally:
                os.seteuid(own)
            assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_image", answer.text
        path.chmod(0o644)
        assert await ask(server, digest, path.read_bytes()) == 1


def png_of_text(chunks: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 14))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tEXt", b"a\0b") * chunks + pixels + chunk(b"IEND", b"")


async def test_nine_megabytes_of_text_in_a_png_are_refused_at_once(serve):
    async with serve(BoxSegmenter(), uploads=100_000_000) as server:
        content = png_of_text(600_000)
        answer = await upload(server, sha256(content).hexdigest(), content)
        assert answer.status_code == 422 and "chunks" in answer.json()["error"]["message"]
        content = png_of_text(900)
        assert (await upload(server, sha256(content).hexdigest(), content)).status_code == 201


async def test_the_server_answers_others_while_it_reads_an_uploads_header(serve, monkeypatch):
    size_of, reads, answered = Images._size_of, threading.Event(), threading.Event()

    def slowly(images: Images, path: str) -> tuple[int, int]:
        reads.set()
        assert answered.wait(GUARD_S)
        return size_of(images, path)

    monkeypatch.setattr(Images, "_size_of", slowly)
    async with serve(BoxSegmenter(), uploads=10_000) as server:
        running = asyncio.create_task(upload(server, *noise(0)))
        await until(reads.is_set)
        assert (await server.get("/health")).status_code == 200
        answered.set()
        assert (await running).status_code == 201


@pytest.mark.parametrize("cache_bytes", [20_000, 1])  # 1: no embedding is kept, so every answer needs the upload
async def test_the_client_gets_every_answer_of_a_server_with_little_space(make_engine, tmp_path, cache_bytes):
    app = create_app(make_engine(BoxSegmenter(seconds=0.01), cache_bytes), [], None, Limits(upload_bytes=300))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    serving = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started)
        config = HttpServiceConfig(addresses=[f"http://127.0.0.1:{port}"])
        client = HttpClient(config, timeout_s=2 * GUARD_S, attempt_s=GUARD_S)
        images = [image_file(tmp_path, grey) for grey in range(10)]  # about 80 bytes each: three fit
        answers = await asyncio.gather(*(client.segment(*image, [Prompt((2, 1, 8, 5))]) for image in images))
        assert [prediction.mask.sum() for (prediction,) in answers] == [24] * 10
    finally:
        server.should_exit = True
        await serving
