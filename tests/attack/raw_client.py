"""Connections that send bytes as they are, and a server in a process of its own for them."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.service.servers import ROOT, TOKEN, environment, free_port

# Serves the fake segmenter: port, seconds an encode takes, a root, a token or nothing, deadlines.
SERVER = """
import sys
from pathlib import Path
from samr1_verl.service.connections import Deadlines, run
from samr1_verl.service.engine import Engine
from samr1_verl.service.http_server import Limits, create_app
from tests.service.fake import BoxSegmenter
port, seconds, root, token, wait = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5]
engine = Engine(BoxSegmenter(seconds=seconds), 10_000_000)
app = create_app(engine, [root], token or None, Limits(max_queue=8))
run(app, deadlines=Deadlines(float(wait), 50_000, 1, 0.1), host="127.0.0.1", port=port, log_level="warning")
engine.close()
"""


class RawServer:
    """A server, and sockets to it, all closed at the end."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port, self.process = port, process
        self.sockets: list[socket.socket] = []

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self.sockets.append(connection)
        with contextlib.suppress(OSError):  # the server may close it at once
            connection.sendall(sent)
        return connection

    def ask(self, sent: bytes) -> bytes:
        """All that the server answers until it closes the connection."""
        return read_all(self.connect(sent))

    def healthy(self, seconds: float = 10.0) -> bool:
        """Whether the server answers a sound request on a new connection within some seconds."""
        connection = self.connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        connection.settimeout(seconds)
        return read_all(connection).startswith(b"HTTP/1.1 200")

    def memory(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss


@contextlib.contextmanager
def raw_server(
    root: Path, seconds: float = 0.0, token: str = TOKEN, wait_s: float = 60.0, files: int | None = None
) -> Iterator[RawServer]:
    """A server whose clients may take `wait_s` seconds, in a process that may open `files` files."""

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files // 2, files))

    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port), str(seconds), str(root), token, str(wait_s)]
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, preexec_fn=limit)
    server = RawServer(port, process)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            with contextlib.suppress(OSError):
                if server.healthy():
                    break
            time.sleep(0.05)
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


def head(method: str, target: str, *lines: str, token: str = TOKEN, host: str = "localhost") -> bytes:
    """A request's header, its empty line included."""
    authorization = [f"Authorization: Bearer {token}"] if token else []
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *authorization, *lines, "", ""]).encode()


def segment_request(body: dict, *lines: str, token: str = TOKEN, host: str = "localhost") -> tuple[bytes, bytes]:
    """Header and body of a request for masks; the server closes the connection after its answer."""
    content = json.dumps(body).encode()
    lines = ("Content-Type: application/json", f"Content-Length: {len(content)}", "Connection: close", *lines)
    return head("POST", "/v1/segment", *lines, token=token, host=host), content
