"""The connections of `samr1 serve`: uvicorn's h11 protocol with a deadline for what a client sends and reads.

uvicorn's own limits are used where it has them: the size of a header (h11), idle connections (`timeout_keep_alive`). It
has no deadline for a header, for a body, or for a client that does not read its answer. `limit_concurrency` looks at a
connection after its header only, so half-open connections would fill it.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from dataclasses import dataclass
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

_log = logging.getLogger("uvicorn.error")
RESERVED = 64  # descriptors for everything but connections: weights, the cache folder, the event loop
MAX_CONNECTIONS = 4096
PER_CONNECTION = 2  # descriptors: the socket, and the file of an upload


@dataclass(frozen=True)
class Deadlines:
    """What a client's connection may take."""

    wait_s: float = 20.0  # seconds for a header; for a body or for reading an answer, beside the time by `rate`
    rate: float = 50_000.0  # bytes per second: a body or an answer has one second more for each of them
    close_s: float = 5.0  # seconds from the close of a connection to its end, though bytes are not read
    check_s: float = 0.5  # seconds between two looks at a connection


class Connection(H11Protocol):
    """A connection that is looked at twice a second, and closed where the client is too slow.

    A client that is late with its request gets status 408. Beyond `max_connections`, the connection that waits longest
    for its client is closed: one that is idle, refused or sent no header yet, and only then one that sends a body.
    """

    deadlines, max_connections = Deadlines(), MAX_CONNECTIONS
    _timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._received, self._since, self._amount = 0, self.loop.time(), 0
        self._seen: tuple[Any, ...] = ()
        self._timer = self.loop.call_later(self.deadlines.check_s, self._check)
        there = [one for one in self.connections if isinstance(one, Connection) and not one.transport.is_closing()]
        if len(there) > self.max_connections:
            waiting = (one for one in there if one is not self and not one.computes)
            min(waiting, key=lambda one: (one.sends_body, one._since), default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._unset_keepalive_if_required()  # uvicorn leaves it where the connection ended with an error
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, which raises where an answer had begun before the request turned out wrong."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def shutdown(self) -> None:
        """As uvicorn's; a request whose body is not complete was not accepted and is refused."""
        if self.cycle is not None and not self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            self._refuse(503, b"The server ends.")
        else:
            super().shutdown()

    @property
    def computes(self) -> bool:
        """Whether a complete request waits for its answer."""
        answered = self.cycle is None or self.cycle.response_complete
        return not answered and self.conn.their_state is not h11.SEND_BODY

    @property
    def sends_body(self) -> bool:
        """Whether the body of a request comes in that was not refused by its header."""
        return self.cycle is not None and not self.cycle.response_complete and not self.computes

    def _check(self) -> None:
        now, unread, closing = self.loop.time(), self.transport.get_write_buffer_size(), self.transport.is_closing()
        seen = (self.cycle, self.conn.their_state, closing, unread > 0)
        if seen != self._seen:  # another request, or another part of it: its time starts
            self._seen, self._since, self._amount = seen, now, unread or -self._received
        transferred = self._amount if unread else self._received + self._amount
        late = now - self._since - self.deadlines.wait_s - transferred / self.deadlines.rate
        if closing:
            if now - self._since > self.deadlines.close_s:
                self.transport.abort()
                return
        elif late > 0 and unread:
            self.transport.abort()
        elif late > 0 and self.conn.their_state is h11.SEND_BODY:
            self._refuse(408, b"The body comes too slowly.")
        elif now - self._since > self.deadlines.wait_s and self.conn.their_state is h11.IDLE and not self.computes:
            self._refuse(408, b"The header comes too slowly.")
        self._timer = self.loop.call_later(self.deadlines.check_s, self._check)

    def _refuse(self, status: int, reason: bytes) -> None:
        """End the connection; the application learns that the client is gone."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        sent_something = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        if sent_something and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
            headers = [("content-type", "text/plain"), ("content-length", str(len(reason))), ("connection", "close")]
            if status == 503:
                headers.append(("retry-after", "1"))
            events = (h11.Response(status_code=status, headers=headers), h11.Data(data=reason), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which the second signal ends at once, SIGTERM as SIGINT."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.loop.call_soon_threadsafe(connection.transport.abort)
        super().handle_exit(sig, frame)


def run(app: ASGIApp, max_connections: int | None = None, deadlines: Deadlines | None = None, **options: Any) -> None:
    """Serve an application until a signal ends the process.

    Args:
        app: the application.
        max_connections: None: as many as the descriptors of the process allow, at most MAX_CONNECTIONS.
        deadlines: None: the usual ones.
        options: of uvicorn.Config.
    """
    most = max_connections or allowed_connections()
    protocol = type("Limited", (Connection,), {"max_connections": most, "deadlines": deadlines or Deadlines()})
    # asyncio accepts as many connections as `backlog` before it looks at the first of them.
    Server(uvicorn.Config(app, http=protocol, ws="none", backlog=min(most, 2048), **options)).run()


def allowed_connections() -> int:
    """Raise the process's limit of open files as far as it may; returns how many connections fit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, (hard - RESERVED) // PER_CONNECTION))
