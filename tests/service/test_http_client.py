"""The HTTP client with real servers in other processes: nothing is lost, and no fault is scored."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import trustme

from samr1_verl.config import HttpServiceConfig
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.images import ImageError, open_image
from samr1_verl.geometry.masks import MaskError, encode_rle
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters import Prompt, SegmenterError, load_segmenter
from samr1_verl.service.http_client import HttpClient
from samr1_verl.service.retry import ServiceError
from samr1_verl.service.wire import TOKEN_VARIABLE
from tests.attack.client_world import limit_attempts
from tests.errors import refused
from tests.row_files import make_record
from tests.segmenters.test_onnx import config_of as onnx_config
from tests.service.fake import image_file
from tests.service.servers import TOKEN, free_port, listens, start, start_fake
from tests.waiting import GUARD_S, until

BOX = Prompt((2, 1, 8, 5))


def truth() -> GroundTruth:
    mask = np.zeros((10, 20), bool)
    mask[1:5, 5:12] = True
    return GroundTruth(size=(10, 20), masks=(encode_rle(mask),))


RIGHT = Overlap(PixelCounts(12, 40), 0.5)


def client_of(*ports: int, timeout_s: float = 2 * GUARD_S, attempt_s: float = GUARD_S) -> HttpClient:
    return HttpClient(
        HttpServiceConfig(addresses=tuple(f"http://127.0.0.1:{port}" for port in ports)), timeout_s, attempt_s
    )


@pytest.fixture
def servers() -> Iterator[list]:
    started: list = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@contextmanager
def broken_server(answer: bytes | None) -> Iterator[int]:
    """Accepts connections and answers every request with these bytes, or never."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                kept.append(connection)
                if answer is not None:
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        for connection in kept:
            connection.close()


async def ask_many(client: HttpClient, folder: Path, count: int) -> None:
    images = [image_file(folder, grey) for grey in range(count)]
    answers = await asyncio.gather(*(client.overlap(*image, [BOX], truth()) for image in images))
    assert answers == [RIGHT] * count


@pytest.mark.slow
async def test_masks_overlaps_and_faults_are_those_of_the_embedded_engine(servers, tmp_path):
    port = free_port()
    servers.append(start_fake(port, tmp_path))
    client, image = client_of(port), image_file(tmp_path, 7)
    await client.prefetch(*image)
    (prediction,) = await client.segment(*image, [BOX])
    assert prediction.mask.sum() == 24 and prediction.mask[1:5, 2:8].all() and prediction.score == 0.5
    assert await client.overlap(*image, [BOX], truth()) == RIGHT
    assert await client.segment(*image, []) == []
    with refused(ImageError, "server_refuses_image", image[0], image[1], "0" * 64):
        await client.overlap(image[0], "0" * 64, [BOX], truth())
    with refused(ImageError, "malformed_digest", "'zero'", "64"):
        await client.overlap(image[0], "zero", [BOX], truth())
    with refused(MaskError, "server_refuses_truth", image[0], "20x10"):
        await client.overlap(*image, [BOX], GroundTruth(size=(20, 10), masks=()))
    with refused(SegmenterError, "server_refuses_request", image[0], "prompts.0", "20x10"):
        await client.overlap(*image, [Prompt((0, 0, 500, 5))], truth())
    with refused(SegmenterError, "bad_prompts", "inverted", "(5.0, 5.0, 2.0, 2.0)"):
        await client.overlap(*image, [Prompt((5, 5, 2, 2))], truth())


@pytest.mark.slow
async def test_images_that_the_server_cannot_read_are_uploaded(servers, tmp_path):
    port = free_port()
    (tmp_path / "root").mkdir()
    servers.append(start_fake(port, tmp_path / "root"))
    client = client_of(port)
    await ask_many(client, tmp_path, 8)
    with refused(ImageError, "image_not_uploaded", "uploaded", "gone.png: no such image"):
        await client.overlap(tmp_path / "gone.png", "0" * 64, [BOX], truth())


async def test_an_images_requests_go_to_one_of_two_addresses_and_both_are_used(servers, tmp_path):
    ports = [free_port(), free_port()]
    client = client_of(*ports)
    firsts = {client._order(f"{index:064x}")[0] for index in range(20)}
    assert len(firsts) == 2 and client._order("a" * 64) == client_of(*reversed(ports))._order("a" * 64)


@pytest.mark.slow
async def test_one_of_two_addresses_gone(servers, tmp_path):
    ports = [free_port(), free_port()]
    servers.append(start_fake(ports[0], tmp_path))
    await ask_many(client_of(*ports), tmp_path, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nspam", b"\0\0\0", b"HTTP/1.1 500 Oh\r\n\r\n", b""]
)
async def test_one_of_two_addresses_slow_or_answering_garbage(servers, tmp_path, answer):
    port = free_port()
    servers.append(start_fake(port, tmp_path))
    with broken_server(answer) as broken:
        client = client_of(port, broken, attempt_s=2.0 if answer is None else GUARD_S)
        await ask_many(client, tmp_path, 16)
        await ask_many(client, tmp_path, 16)  # the address that failed is asked last


@pytest.mark.slow
async def test_a_server_killed_under_load_and_restarted(servers, tmp_path):
    port = free_port()
    servers.append(start_fake(port, tmp_path))
    client = client_of(port)
    await ask_many(client, tmp_path, 5)
    (tmp_path / "gate").touch()
    asked = asyncio.ensure_future(ask_many(client, tmp_path, 40))
    await until(lambda: (tmp_path / "encodes").read_text().count("begun") == 6)
    assert not asked.done()
    servers[0].kill()
    servers[0].wait()
    (tmp_path / "gate").unlink()
    servers.append(await asyncio.to_thread(start_fake, port, tmp_path))
    await asked


async def test_one_clear_exception_when_nobody_answers(tmp_path, monkeypatch):
    image = image_file(tmp_path, 7)
    with broken_server(None) as silent, refused(ServiceError, "service_not_answering", "7.png: ", " 0.5 s ") as found:
        await client_of(silent, timeout_s=0.5, attempt_s=0.2).overlap(*image, [BOX], truth())
    assert re.search(r" \d+ attempts", str(found.value))
    limit_attempts(3, monkeypatch)
    with refused(ServiceError, "service_not_answering", "7.png: ", " 3 attempts", "ConnectError"):
        await client_of(free_port()).overlap(*image, [BOX], truth())


@pytest.mark.slow
def test_a_client_serves_one_event_loop_after_another(servers, tmp_path):
    port = free_port()
    servers.append(start_fake(port, tmp_path))
    client = client_of(port)
    for _ in range(3):
        asyncio.run(ask_many(client, tmp_path, 3))


# `samr1 serve` that writes a line to a folder's file `asked` for each request, and encodes when there is a file `gate`.
GATED = """
import sys
from pathlib import Path
from samr1_verl.cli import app
from samr1_verl.segmenters.onnx import OnnxSegmenter
from samr1_verl.service.engine import Engine
from tests.waiting import wait_until
folder, size, encode = Path(sys.argv.pop(1)), Engine.size, OnnxSegmenter.encode
def asked(*given):
    with (folder / "asked").open("a") as log:
        log.write("a request\\n")
    return size(*given)
def gated(*given):
    wait_until((folder / "gate").exists)
    return encode(*given)
Engine.size, OnnxSegmenter.encode = asked, gated
app()
"""


@pytest.mark.slow
async def test_samr1_serve_itself_and_sigterm_finishes_what_it_accepted(servers, small_sam, tmp_path, monkeypatch):
    port, record = free_port(), make_record(tmp_path)
    command = ["-c", GATED, str(tmp_path), "serve", "--backend", "onnx", "--path", str(small_sam), "--device", "cpu"]
    server = start([*command, "--port", str(port), "--root", str(tmp_path)], port, **{TOKEN_VARIABLE: TOKEN})
    servers.append(server)
    image = tmp_path / "a.png", record.sha256
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with refused(SegmenterError, "server_refuses_request", image[0], "Bearer <token>"):
        await client_of(port).segment(*image, [Prompt((16, 12, 32, 24))])
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    client, prompts = client_of(port), [Prompt((16, 12, 32, 24 - index)) for index in range(8)]
    await client.prefetch(*image)
    asked = [asyncio.ensure_future(client.segment(*image, [prompt])) for prompt in prompts]
    await until(lambda: (tmp_path / "asked").exists() and (tmp_path / "asked").read_text().count("\n") == 8)
    os.kill(server.pid, signal.SIGTERM)
    await until(lambda: not listens(port))
    (tmp_path / "gate").touch()
    answers = await asyncio.gather(*asked)
    assert server.wait(GUARD_S) in (0, -signal.SIGTERM)
    segmenter = load_segmenter(onnx_config(small_sam))
    embedding = segmenter.encode(np.asarray(open_image(image[0])))
    for (answer,), prompt in zip(answers, prompts, strict=True):
        (expected,) = segmenter.decode(embedding, [prompt])
        np.testing.assert_array_equal(answer.mask, expected.mask)
        assert answer.score == pytest.approx(expected.score)


@pytest.mark.slow
async def test_https_with_a_certificate(servers, small_sam, tmp_path, monkeypatch):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    port, record = free_port(), make_record(tmp_path)
    options = {"backend": "onnx", "path": small_sam, "device": "cpu", "port": port, "root": tmp_path}
    options |= {"ssl-certfile": tmp_path / "certificate.pem", "ssl-keyfile": tmp_path / "key.pem"}
    command = ["-m", "samr1_verl.cli", "serve", *(f"--{name}={value}" for name, value in options.items())]
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))  # httpx trusts it
    servers.append(start(command, port, scheme="https"))
    config = HttpServiceConfig(addresses=(f"https://127.0.0.1:{port}",))
    asked = tmp_path / "a.png", record.sha256, [Prompt((16, 12, 32, 24))]
    (prediction,) = await HttpClient(config, 2 * GUARD_S, GUARD_S).segment(*asked)
    assert prediction.mask.any()
    monkeypatch.delenv("SSL_CERT_FILE")
    limit_attempts(2, monkeypatch)
    with refused(ServiceError, "service_not_answering", "a.png", "certificate verify failed"):
        await HttpClient(config, 2 * GUARD_S, GUARD_S).segment(*asked)
