"""What strangers and slow clients send to `samr1 serve`, byte by byte."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.attack.raw_client import STEP_S, WAIT_S, RawServer, closed, head, raw_server, read_all, segment_request
from tests.service.fake import image_file
from tests.service.servers import TOKEN, listens
from tests.waiting import GUARD_S, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[RawServer]:
    with raw_server(root) as server:
        yield server


@pytest.fixture(scope="module")
def open_server(root: Path) -> Iterator[RawServer]:
    """It has no token."""
    with raw_server(root, token="") as server:
        yield server


def sound(root: Path, grey: int = 7) -> dict:
    path, digest = image_file(root, grey)
    return {"image": {"path": str(path), "sha256": digest}, "prompts": [{"box": [2, 1, 8, 5]}], "masks": True}


def answers(server: RawServer, root: Path) -> bool:
    return server.ask(b"".join(segment_request(sound(root)))).startswith(b"HTTP/1.1 200")


HALVES = {
    "nothing": b"",
    "half a header": b"POST /v1/segment HTTP/1.1\r\nHost: local",
    "half a body": head("POST", "/v1/segment", "Content-Length: 1000", "Content-Type: application/json") + b"{",
    "half an upload": head("PUT", f"/v1/images/{'0' * 64}", "Content-Length: 1000") + b"x",
    "half a chunk": head("POST", "/v1/segment", "Transfer-Encoding: chunked") + b"ff\r\nabc",
    "half a body that was refused": head("POST", "/v1/segment", "Content-Length: 1000", token="wrong") + b"{",
}


@pytest.mark.parametrize("half", HALVES)
def test_half_a_request_ends_at_its_deadline(server, half):
    connection = server.connect(HALVES[half])
    for _ in range(WAIT_S // STEP_S):
        server.put_forward()
    assert not closed(connection)
    for _ in range(2):  # the server may have looked at the connection for the first time after the first step
        server.put_forward()
    assert closed(connection)
    answer = read_all(connection)
    expected = {"nothing": b"", "half a body that was refused": b"HTTP/1.1 401"}.get(half, b"HTTP/1.1 408")
    assert answer.startswith(expected) and (answer or not expected)


@pytest.mark.parametrize("start", ["half a header", "half a body", "half an upload"])
def test_a_byte_now_and_then_moves_no_deadline(server, start):
    connection, sent = server.connect(HALVES[start]), 0
    while not closed(connection):
        assert sent < 10, "its deadline moves"
        connection.sendall(b"x")
        sent += 1
        server.put_forward()
    assert sent > WAIT_S // STEP_S and read_all(connection).startswith(b"HTTP/1.1 408")


def test_a_second_request_on_a_connection_has_a_deadline_too(server):
    connection = server.connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    connection.sendall(HALVES["half a header"])
    for _ in range(WAIT_S // STEP_S + 2):
        server.put_forward()
    assert closed(connection) and b"HTTP/1.1 408" in read_all(connection)


def test_an_upload_that_moves_on_may_take_longer_than_the_deadline(server):
    part, count = b"x" * 8_000_000, WAIT_S // STEP_S + 2
    length = f"Content-Length: {len(part) * count}"
    connection = server.connect(head("PUT", f"/v1/images/{'0' * 64}", length, "Connection: close"))
    for _ in range(count):  # each buys half a step
        connection.sendall(part)
        server.put_forward()
    assert read_all(connection).startswith(b"HTTP/1.1 422")


def test_a_client_that_reads_no_answer_is_left(server):
    requests = rest = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
    connection = server.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.settimeout(0.1)
    with pytest.raises(ConnectionError):
        for _ in range(50):
            with contextlib.suppress(TimeoutError):
                while True:
                    rest = rest[connection.send(rest) :] or requests
            server.put_forward()
    assert server.healthy()


def test_slow_bodies_take_nobodys_place(server, root):
    for _ in range(40):  # the queue has 8 places
        server.connect(HALVES["half a body"])
        server.connect(HALVES["half an upload"])
    assert answers(server, root) and not any(map(closed, server.sockets[-81:-1]))


def test_half_open_connections_beyond_the_descriptors_stop_nobody(root):
    with raw_server(root, files=128) as server:
        for half in ("half a header", "nothing", "half a body", "half a body that was refused"):
            for _ in range(60):
                server.connect(HALVES[half])
        assert server.healthy() and answers(server, root)


def test_a_signal_ends_the_server_though_a_body_is_half_sent(root):
    with raw_server(root) as server:
        halves = [server.connect(half) for half in HALVES.values()]
        assert server.healthy()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(GUARD_S) == -signal.SIGTERM
        assert b"HTTP/1.1 503" in read_all(halves[2])


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[RawServer, list[socket.socket]]]:
    """A server that was told to end while it computes for the first of eight requests, which waits at a gate."""
    (tmp_path / "gate").touch()
    with raw_server(tmp_path) as server:
        requests = [segment_request(sound(tmp_path, grey)) for grey in range(8)]
        accepted = [server.connect(b"".join(request)) for request in requests]
        server.connect(HALVES["half a body"])
        assert server.healthy()
        wait_until((tmp_path / "encodes").exists)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not listens(server.port))
        yield server, accepted


def test_the_first_signal_waits_for_the_accepted_requests(busy, tmp_path):
    server, accepted = busy
    (tmp_path / "gate").unlink()
    assert all(read_all(one).startswith(b"HTTP/1.1 200") for one in accepted)
    server.process.wait(GUARD_S)


def test_the_second_signal_does_not_wait(busy, tmp_path):
    server, accepted = busy
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(GUARD_S) == -signal.SIGTERM
    assert [read_all(one) for one in accepted] == [b""] * 8
    assert (tmp_path / "gate").exists() and (tmp_path / "encodes").read_text() == "begun\n"


ENDLESS = {
    "a header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"x"),
    "many headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"),
    "a target": (b"GET /", b"x"),
    "a chunk's length": (head("POST", "/v1/segment", "Transfer-Encoding: chunked"), b"0"),
    "a chunk's extension": (head("POST", "/v1/segment", "Transfer-Encoding: chunked") + b"1;", b"x"),
    "trailers": (head("POST", "/v1/segment", "Transfer-Encoding: chunked") + b"1\r\n{\r\n0\r\n", b"X: y\r\n"),
    "empty lines": (b"", b"\r\n"),
    "a body in chunks": (
        head("POST", "/v1/segment", "Transfer-Encoding: chunked"),
        b"ffff\r\n" + b" " * 65535 + b"\r\n",
    ),
    "a body that was refused": (head("POST", "/v1/segment", "Content-Length: 900000000000", token="wrong"), b" "),
}


@pytest.mark.parametrize("endless", ENDLESS)
def test_what_has_no_end_takes_no_memory(server, root, endless):
    start, part = ENDLESS[endless]
    block = part * (1 + 1_000_000 // len(part))
    before, connection = server.memory(), server.connect(start)
    sent = 0
    connection.settimeout(2)
    with contextlib.suppress(OSError):  # closed, or no longer read
        while sent < 60_000_000:
            sent += connection.send(block)
    assert server.memory() - before < 25_000_000
    connection.close()
    assert answers(server, root)


def test_a_length_that_is_a_lie_is_refused(server, root):
    request, content = segment_request(sound(root))
    longer = request.replace(b"Content-Length: ", b"Content-Length: 9")
    connection = server.connect(longer + content)
    connection.shutdown(socket.SHUT_WR)
    assert not read_all(connection).startswith(b"HTTP/1.1 200")
    shorter = request.replace(f"Content-Length: {len(content)}".encode(), b"Content-Length: 20")
    assert server.ask(shorter + content).startswith(b"HTTP/1.1 422")
    huge = request.replace(f"Content-Length: {len(content)}".encode(), b"Content-Length: 999999999999999999999")
    assert server.ask(huge).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
    for lie in (b"-1", b"1e3", b"0x10", b"\xb2", b"1, 2", b""):
        wrong = request.replace(f"Content-Length: {len(content)}".encode(), b"Content-Length: " + lie)
        assert server.ask(wrong + content).startswith(b"HTTP/1.1 400"), lie
    both = request.replace(b"Connection:", b"Transfer-Encoding: chunked\r\nConnection:")
    assert server.ask(both + content + b"\r\n").startswith(b"HTTP/1.1 400")
    twice = request.replace(b"Connection:", b"Content-Length: 3\r\nConnection:")
    assert server.ask(twice + content).startswith(b"HTTP/1.1 400")
    assert answers(server, root)


def test_a_client_that_waits_for_continue_gets_it_only_where_its_request_is_taken(server, root):
    request, content = segment_request(sound(root), "Expect: 100-continue")
    connection = server.connect(request)
    assert connection.recv(65536).startswith(b"HTTP/1.1 100")
    connection.sendall(content)
    assert read_all(connection).startswith(b"HTTP/1.1 200")
    stranger, _ = segment_request(sound(root), "Expect: 100-continue", token="wrong")
    assert server.ask(stranger).startswith(b"HTTP/1.1 401")


def test_requests_in_one_piece_are_answered_in_order(server, root):
    request, content = segment_request(sound(root))
    kept = request.replace(b"Connection: close\r\n", b"")
    wrong = head("GET", "/metrics", token="wrong")
    answer = server.ask((kept + content + wrong) * 20 + request + content)
    statuses = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1")]
    statuses += [part.split()[1] for part in answer.split(b"}HTTP/1.1")[1:]]
    assert answer.count(b'"predictions"') == 21 and answer.count(b'"token"') == 20
    assert answer.index(b'"token"') > answer.index(b'"predictions"')


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.5", "localhost.", "a]", "[::1", ""])
def test_another_name_for_loopback_is_refused_without_a_token(open_server, root, host):
    answer = open_server.ask(b"".join(segment_request(sound(root), token="", host=host)))
    assert answer.startswith(b"HTTP/1.1 403") and b'"origin"' in answer
    assert b"403" in open_server.ask(head("GET", "/health", "Connection: close", token="", host=host))[:20]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8765", "[::1]:80", "LOCALHOST:1", "127.8.8.8"])
def test_loopbacks_names_are_answered(open_server, root, host):
    own = f"Origin: http://{host}"
    for lines in ((), (own,)):
        answer = open_server.ask(b"".join(segment_request(sound(root), *lines, token="", host=host)))
        assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "", "file://"])
def test_a_foreign_page_is_refused_without_a_token(open_server, root, origin):
    answer = open_server.ask(b"".join(segment_request(sound(root), f"Origin: {origin}", token="")))
    assert answer.startswith(b"HTTP/1.1 403") and b'"origin"' in answer


def test_with_a_token_names_do_not_matter(server, root):
    request = segment_request(sound(root), "Origin: https://other.example", host="service.example")
    assert server.ask(b"".join(request)).startswith(b"HTTP/1.1 200")


def test_requests_with_wrong_bytes_are_refused_or_answered(server, root):
    """1,000 requests with bytes changed, removed, doubled or cut, from one seed."""
    random, request = np.random.default_rng(13), b"".join(segment_request(sound(root)))
    upload = head("PUT", f"/v1/images/{'0' * 64}", "Transfer-Encoding: chunked") + b"5\r\nabcde\r\n0\r\n\r\n"
    statuses: list[bytes] = []

    def attack(start: int) -> None:
        for hostile in requests[start::4]:
            connection = server.connect(hostile)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            statuses.append(read_all(connection)[9:12])
            connection.close()

    requests = [mutated(random, request if index % 4 else upload) for index in range(1000)]
    threads = [threading.Thread(target=attack, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD_S)
    assert len(statuses) == 1000 and b"500" not in statuses
    assert set(statuses) <= {
        b"",
        b"100",
        b"200",
        b"400",
        b"401",
        b"403",
        b"404",
        b"405",
        b"408",
        b"413",
        b"422",
        b"501",
    }
    assert answers(server, root)


def mutated(random: np.random.Generator, request: bytes) -> bytes:
    content = bytearray(request)
    for _ in range(random.integers(1, 6)):
        at, kind = int(random.integers(len(content) or 1)), random.integers(5)
        if kind == 0:
            content[at : at + 1] = [int(random.integers(256))]
        elif kind == 1:
            del content[at : at + int(random.integers(1, 20))]
        elif kind == 2:
            content[at:at] = content[at : at + int(random.integers(1, 200))]
        elif kind == 3:
            content[at:at] = random.integers(256, size=random.integers(1, 20), dtype=np.uint8).tobytes()
        else:
            content = content[: at + 1]
    return bytes(content)


def test_the_page_of_a_server_with_a_token_opens_and_loads_nothing_from_elsewhere(server):
    page = server.ask(head("GET", "/docs", "Connection: close", token=""))
    assert page.startswith(b"HTTP/1.1 200") and b"//cdn" not in page and TOKEN.encode() not in page
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/static-offline-docs/{name}".encode() in page
        file = server.ask(head("GET", f"/static-offline-docs/{name}", "Connection: close", token=""))
        assert file.startswith(b"HTTP/1.1 200") and len(file) > 100_000
    schema = server.ask(head("GET", "/openapi.json", "Connection: close", token=""))
    assert b"HTTPBearer" in schema and schema.startswith(b"HTTP/1.1 200")
    assert b"404" in server.ask(head("GET", "/static-offline-docs/../core.py", "Connection: close", token=""))[:20]
