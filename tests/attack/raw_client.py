"""Connections that send bytes as they are, and a server in a process of its own for them."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.service.servers import ROOT, TOKEN, environment, free_port, listens
from tests.waiting import GUARD_S, wait_until

WAIT_S, STEP_S = 10_000, 3_000  # a client's deadline, which no slow machine meets; a step of the server's clock
RATE = 5_000  # bytes with which a client buys a second more
# Serves the fake segmenter of a folder: port, a root, a token or nothing, a file with a byte per step of the clock.
SERVER = f"""
import asyncio, os, sys, time
from pathlib import Path
from samr1_verl.service.connections import Deadlines, run
from samr1_verl.service.engine import Engine
from samr1_verl.service.http_server import Limits, create_app
from tests.service.fake import FolderSegmenter
port, root, token, clock = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
asyncio.BaseEventLoop.time = lambda loop: time.monotonic() + {STEP_S} * os.path.getsize(clock)
engine = Engine(FolderSegmenter(root), 10_000_000)
app = create_app(engine, [root], token or None, Limits(max_queue=8))
options = dict(loop="asyncio", host="127.0.0.1", port=port, log_level="warning", timeout_keep_alive=10 * {WAIT_S})
run(app, deadlines=Deadlines({WAIT_S}, {RATE}, {WAIT_S}, 0.1), **options)
engine.close()
"""


class RawServer:
    """A server, and sockets to it, all closed at the end."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], clock: Path) -> None:
        self.port, self.process, self._clock = port, process, clock
        self.sockets: list[socket.socket] = []

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=GUARD_S)
        self.sockets.append(connection)
        with contextlib.suppress(OSError):  # the server may close it at once
            connection.sendall(sent)
        return connection

    def ask(self, sent: bytes) -> bytes:
        """All that the server answers until it closes the connection."""
        return read_all(self.connect(sent))

    def healthy(self) -> bool:
        """Whether the server answers a sound request on a new connection, after all that came before it."""
        answer = self.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return answer.startswith(b"HTTP/1.1 200")

    def put_forward(self) -> None:
        """A step of the server's clock; returns when it has looked at its connections."""
        assert self.healthy()  # it knows the connections
        with self._clock.open("ab") as clock:
            clock.write(b"x")
        assert self.healthy()

    def memory(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss


@contextlib.contextmanager
def raw_server(root: Path, token: str = TOKEN, files: int | None = None) -> Iterator[RawServer]:
    """A server whose clients may take WAIT_S seconds, in a process that may open `files` files."""

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files // 2, files))

    port = free_port()
    clock = root / f"clock_{port}"
    clock.touch()
    command = [sys.executable, "-c", SERVER, str(port), str(root), token, str(clock)]
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, preexec_fn=limit)
    server = RawServer(port, process, clock)
    try:
        wait_until(lambda: process.poll() is not None or listens(port))
        assert server.healthy(), "the server did not start"
        yield server
    finally:
        for connection in server.sockets:
            connection.close()
        process.kill()
        process.wait()


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes; b"" where it resets the connection."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it, though what it sent before was not read."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def head(method: str, target: str, *lines: str, token: str = TOKEN, host: str = "localhost") -> bytes:
    """A request's header, its empty line included."""
    authorization = [f"Authorization: Bearer {token}"] if token else []
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *authorization, *lines, "", ""]).encode()


def segment_request(body: dict, *lines: str, token: str = TOKEN, host: str = "localhost") -> tuple[bytes, bytes]:
    """Header and body of a request for masks; the server closes the connection after its answer."""
    content = json.dumps(body).encode()
    lines = ("Content-Type: application/json", f"Content-Length: {len(content)}", "Connection: close", *lines)
    return head("POST", "/v1/segment", *lines, token=token, host=host), content
