"""The HTTP service: what it answers, what it refuses and how, and that it is alive afterwards."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import decode_rle, encode_rle
from samr1_verl.service.engine import Engine
from samr1_verl.service.http_server import Limits, create_app
from tests.service.fake import BoxSegmenter, image_file
from tests.service.servers import TOKEN
from tests.waiting import until

LIMITS = Limits(max_body=600_000, max_pixels=10_000, max_queue=8)


@pytest.fixture
def segmenter() -> BoxSegmenter:
    return BoxSegmenter()


@pytest.fixture
async def server(tmp_path: Path, segmenter: BoxSegmenter) -> AsyncIterator[httpx.AsyncClient]:
    (tmp_path / "root").mkdir()
    engine = Engine(segmenter, 1_000_000, max_pixels=LIMITS.max_pixels)
    app = create_app(engine, [tmp_path / "root"], TOKEN, LIMITS)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://server",
        headers={"Authorization": f"Bearer {TOKEN}"},
    ) as client:
        yield client
    engine.close()


@pytest.fixture
def image(server, tmp_path: Path) -> dict[str, str]:
    path, digest = image_file(tmp_path / "root", 7)
    return {"path": str(path), "sha256": digest}


def body_of(image: dict[str, str], **changes: Any) -> dict[str, Any]:
    return {"image": image, "prompts": [{"box": [2, 1, 8, 5]}], "masks": True} | changes


def truth_of(mask: np.ndarray) -> dict[str, Any]:
    return {"size": list(mask.shape), "masks": [encode_rle(mask)]}


async def alive(server: httpx.AsyncClient, image: dict[str, str]) -> None:
    answer = await server.post("/v1/segment", json=body_of(image))
    assert answer.status_code == 200 and decode_rle(answer.json()["predictions"][0]["mask"], (10, 20)).sum() == 24


async def refused(server: httpx.AsyncClient, status: int, code: str, *names: str, **request: Any) -> None:
    answer = await server.request(**({"method": "POST", "url": "/v1/segment"} | request))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code and all(name in error["message"] for name in names), error
    assert len(answer.content) < 4000


async def test_masks_and_overlap_by_path_and_then_by_digest(server, image):
    mask = np.zeros((10, 20), bool)
    mask[1:5, 5:12] = True
    expected = {"intersection": 12, "union": 40, "ignored": 0, "ignored_predicted": 0, "iou": 0.3, "score": 0.5}
    answer = (await server.post("/v1/segment", json=body_of(image, truth=truth_of(mask)))).json()
    assert answer["size"] == [10, 20] and answer["overlap"] == expected and answer["predictions"][0]["score"] == 0.5
    by_digest = body_of({"sha256": image["sha256"]}, truth=truth_of(mask), masks=False)
    answer = (await server.post("/v1/segment", json=by_digest)).json()
    assert answer["overlap"] == expected and answer["predictions"] is None


async def test_an_uploaded_image_is_known_by_its_digest(server, image, tmp_path):
    path, digest = image_file(tmp_path, 9)
    await refused(server, 404, "unknown_image", digest, json=body_of({"sha256": digest}))
    answer = await server.put(f"/v1/images/{digest}", content=path.read_bytes())
    assert answer.status_code == 201 and answer.json() == {
        "segmenter": "boxes/1",
        "sha256": digest,
        "size": [10, 20],
    }
    await alive(server, {"sha256": digest})


async def test_a_prefetched_image_waits_for_its_decode_only(server, image):
    async def metrics():
        text = (await server.get("/metrics")).text
        return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))

    assert (await server.post("/v1/prefetch", json={"image": image})).status_code == 202
    while (await metrics())["samr1_cached_bytes"] == "0.0":
        await asyncio.sleep(0.001)
    await alive(server, image)
    values = await metrics()
    assert values["samr1_hits_total"] == values["samr1_requests_total"] == "1.0"
    assert values["samr1_encodes_total"] == values["samr1_decodes_total"] == "1.0"
    assert float(values["samr1_cached_bytes"]) == 4096 and "samr1_queued" in values
    assert values['samr1_request_seconds_count{path="/v1/segment",status="200"}'] == "1.0"


def points(count: int) -> list[dict[str, Any]]:
    return [{"points": [[1, 1]] * count, "labels": [1] * count}]


@pytest.mark.parametrize(
    ("prompts", "names"),
    [
        ([{"box": [8, 1, 2, 5]}], ["(8.0, 1.0, 2.0, 5.0)", "inverted"]),
        ([{"box": [2, 1, 2, 5]}], ["(2.0, 1.0, 2.0, 5.0)", "empty"]),
        ([{"box": [2, 1, 800, 5]}], ["prompts.0", "outside", "20x10"]),
        ([{"box": [0, 0, 2, 2]}, {"points": [[-3, 1]], "labels": [1]}], ["prompts.1", "outside"]),
        (points(10_000), ["at most 1000"]),
        (points(1) * 10_000, ["at most 256"]),
        ([], ["at least 1"]),
        ([{}], ["neither"]),
        ([{"points": [[1, 1]], "labels": []}], ["1 points", "0 labels"]),
        ([{"points": [[1, 1]], "labels": [7]}], ["labels.0"]),
        ([{"box": [1, 1, 2]}], ["box"]),
        ([{"box": [1, 1, 2, 2], "mask": 1}], ["mask"]),
        ("box", ["prompts"]),
    ],
)
async def test_bad_prompts_are_refused(server, image, prompts, names):
    await refused(server, 422, "request", *names, json=body_of(image, prompts=prompts))
    await alive(server, image)


@pytest.mark.parametrize(
    ("number", "name"),
    [("NaN", "byte"), ("Infinity", "byte"), ("-Infinity", "byte"), ("1e400", "body.prompts.0.box.0")],
)
async def test_numbers_that_are_none_are_refused(server, image, number, name):
    content = json.dumps(body_of(image)).replace("[2,", f"[{number},")
    await refused(server, 422, "request", name, content=content, headers={"Content-Type": "application/json"})
    await alive(server, image)


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"image": 1}', b"null"])
async def test_what_is_no_request_is_refused(server, image, content):
    answer = await server.post("/v1/segment", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422) and answer.json()["error"]["code"] == "request"
    await alive(server, image)


async def test_missing_fields_are_named(server, image):
    await refused(server, 422, "request", "body.prompts: Field required", json={"image": image, "masks": True})
    await refused(server, 422, "request", "body.image: Field required", json={"prompts": [], "masks": True})
    await refused(server, 422, "request", "truth", "masks", json=body_of(image, masks=False))


async def test_a_body_over_the_limit_is_refused_announced_or_not(server, image):
    large = b"x" * (LIMITS.max_body + 1)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 10_000):
            yield large[start : start + 10_000]

    for url, method in (("/v1/segment", "POST"), (f"/v1/images/{'0' * 64}", "PUT")):
        for content in (large, chunks()):
            await refused(server, 413, "body_too_large", "600000 bytes", url=url, method=method, content=content)
    await alive(server, image)


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("../outside.png", 403, "outside_roots"),
        ("/etc/passwd", 403, "outside_roots"),
        ("link.png", 403, "outside_roots"),
        ("folder/../../outside.png", 403, "outside_roots"),
        ("gone.png", 404, "unknown_image"),
        ("7.png\0.txt", 422, "image"),
        ("x" * 5000, 422, "request"),
        ("x" * 3000, 404, "unknown_image"),
        ("", 422, "request"),
    ],
)
async def test_a_path_outside_the_roots_is_refused(server, image, tmp_path, name, status, code):
    _, digest = image_file(tmp_path, 9)
    (tmp_path / "9.png").rename(tmp_path / "outside.png")
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "root" / "folder").mkdir()
    await refused(server, status, code, json=body_of({"path": name, "sha256": digest}))
    await alive(server, image)


async def test_a_relative_path_is_taken_from_the_root(server, image):
    await alive(server, {"path": "7.png", "sha256": image["sha256"]})


async def test_a_wrong_digest_is_refused(server, image, tmp_path):
    await refused(server, 422, "image", "SHA-256", json=body_of(image | {"sha256": "0" * 64}))
    await refused(server, 422, "request", "pattern", json=body_of(image | {"sha256": "../../etc"}))
    content = image_file(tmp_path, 9)[0].read_bytes()
    await refused(server, 422, "image", "SHA-256", method="PUT", url=f"/v1/images/{'0' * 64}", content=content)
    await alive(server, image)


def huge_png() -> bytes:
    """A valid header that announces 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("content", "message"), [(b"no image", "unreadable"), (huge_png(), "pixels")])
async def test_an_image_that_is_none_or_too_large_is_refused(server, image, tmp_path, content, message):
    path = tmp_path / "root" / "bad.png"
    path.write_bytes(content)
    digest = sha256_of(path)
    await refused(server, 422, "image", message, json=body_of({"path": str(path), "sha256": digest}))
    await refused(server, 422, "image", message, method="PUT", url=f"/v1/images/{digest}", content=content)
    Image.new("RGB", (200, 60)).save(path)
    await refused(server, 422, "image", "limit", json=body_of({"path": str(path), "sha256": sha256_of(path)}))
    await alive(server, image)


@pytest.mark.parametrize("token", [None, "Bearer wrong", "Bearer", "Basic c2VjcmV0", "Bearer \xe9".encode("latin-1")])
async def test_a_wrong_or_missing_token_is_refused_before_anything_is_read(server, image, token, segmenter):
    headers = {"Authorization": "" if token is None else token}
    for request in (
        {"method": "POST", "url": "/v1/segment", "json": body_of(image)},
        {"method": "PUT", "url": f"/v1/images/{'0' * 64}", "content": b"x"},
        {"method": "GET", "url": "/metrics"},
    ):
        answer = await server.request(**request, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "token"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert segmenter.encoded == []
    assert (await server.get("/health", headers=headers)).status_code == 200
    await alive(server, image)


@pytest.mark.parametrize(
    ("truth", "names"),
    [
        ({"size": [20, 10], "masks": []}, ["ground_truth.size", "20x10"]),
        ({"size": [10, 20], "masks": ["~~~"]}, ["RLE", "'~'"]),
        ({"size": [10, 20], "masks": ["o" * 100_000]}, ["60 bits"]),
        ({"size": [10, 20], "masks": ["11"]}, ["RLE", "2 pixels", "10x20"]),
    ],
)
async def test_a_truth_that_is_none_is_refused(server, image, truth, names):
    await refused(server, 422, "truth", *names, json=body_of(image, truth=truth))
    await alive(server, image)


async def test_a_segmenter_that_fails_is_a_fault_and_no_score(server, image, segmenter):
    segmenter.fault = RuntimeError("out of memory")
    await refused(server, 500, "segmenter", "out of memory", json=body_of(image))
    segmenter.fault = None
    await alive(server, image)


async def test_more_requests_than_the_queue_takes_are_asked_to_come_again(server, image, segmenter):
    segmenter.gate.clear()
    asked = [asyncio.ensure_future(server.post("/v1/segment", json=body_of(image))) for _ in range(20)]
    await until(lambda: sum(one.done() for one in asked) == 20 - LIMITS.max_queue)
    segmenter.gate.set()
    answers = await asyncio.gather(*asked)
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) == LIMITS.max_queue and statuses.count(503) == 20 - LIMITS.max_queue
    busy = next(answer for answer in answers if answer.status_code == 503)
    assert busy.json()["error"]["code"] == "busy" and busy.headers["retry-after"] == "1"
    await alive(server, image)


async def test_a_stuck_segmenter_is_not_healthy(tmp_path):
    segmenter = BoxSegmenter()
    segmenter.gate.clear()
    engine = Engine(segmenter, 1_000_000)
    app = create_app(engine, [tmp_path], None, Limits(stuck_s=0.05))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        assert (await client.get("/health")).status_code == 200
        path, digest = image_file(tmp_path, 7)
        await client.post("/v1/prefetch", json={"image": {"path": str(path), "sha256": digest}})
        await until(lambda: engine.busy_seconds() > 0.05)
        answer = await client.get("/health")
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "segmenter" and "boxes/1" in answer.text
        segmenter.gate.set()
        await until(lambda: not engine.busy_seconds())
        assert (await client.get("/health")).status_code == 200
    engine.close()


async def test_the_oldest_uploads_go_when_there_are_too_many(tmp_path, segmenter):
    engine = Engine(segmenter, 1)  # keeps no embedding, so a digest is known by its upload
    app = create_app(engine, [], None, Limits(upload_bytes=200))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        digests = []
        for grey in range(1, 5):
            path, digest = image_file(tmp_path, grey)  # about 80 bytes each
            digests.append(digest)
            url, status = f"/v1/images/{digest}", 503
            while status == 503:  # until the embedding of another upload is made
                status = (await client.put(url, content=path.read_bytes())).status_code
            assert status == 201
        statuses = [(await client.post("/v1/segment", json=body_of({"sha256": one}))).status_code for one in digests]
        assert statuses[-1] == 200 and statuses[0] == 404
    engine.close()
