"""An HTTP server of a few lines that answers whatever a test wants, byte by byte."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

# From a request (its first line and its body) to the bytes of its answer, sent piece by piece.
Behaviour = Callable[[str, bytes], Iterable[bytes]]


@dataclass
class Hostile:
    """A running server: what it was asked, and how many bytes it could send."""

    address: str
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    sent: int = 0


@contextmanager
def hostile_server(behaviour: Behaviour) -> Iterator[Hostile]:
    """One thread per connection; each connection has one request."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        server = Hostile(f"http://127.0.0.1:{listening.getsockname()[1]}")
        connections: list[socket.socket] = []
        threads: list[threading.Thread] = []
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connections.append(connection)
                threads.append(threading.Thread(target=_serve, args=(connection, behaviour, server, ended)))
                threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield server
        finally:
            ended.set()
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in connections:
                _hang_up(connection)
            for thread in threads:
                thread.join()


def _serve(connection: socket.socket, behaviour: Behaviour, server: Hostile, ended: threading.Event) -> None:
    try:
        with connection:
            line, body = _request(connection)
            server.asked.append((line, body))
            for piece in behaviour(line, body):
                if ended.is_set():
                    return
                connection.sendall(piece)
                server.sent += len(piece)
    except OSError:
        pass  # the client hung up, as it should


def _request(connection: socket.socket) -> tuple[str, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        if not (more := connection.recv(65536)):
            raise OSError("no request")
        received += more
    head, body = received.split(b"\r\n\r\n", 1)
    lengths = [line for line in head.lower().splitlines() if line.startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0].split(b":")[1]):
        body += connection.recv(65536)
    return head.splitlines()[0].decode(), body


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # closed already
        connection.shutdown(socket.SHUT_RDWR)


def answer(content: Any, status: str = "200 OK", *headers: str) -> bytes:
    """An HTTP answer. `content`: bytes as they are, or a value as JSON (NaN and Infinity included)."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body
