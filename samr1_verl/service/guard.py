"""The middleware of `samr1 serve`: it checks token, size and queue of each request and measures its latency."""

from __future__ import annotations

import ipaddress
import secrets
import time
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samr1_verl.service.wire import ErrorAnswer, ErrorCode, Problem

OPEN_PATHS = ("/health", "/docs", "/openapi.json", "/static-offline-docs/")  # no token; they hold no secret
UPLOADS = "/v1/images/"
MAX_JSON = 2_000_000  # bytes of a request in JSON, which is parsed in the event loop
SMALL_BODY = 65_536  # bytes of a body that is read however many others are being read
MAX_BODIES = 256_000_000  # bytes of all larger bodies in memory together


def is_loopback(host: str) -> bool:
    """Whether a host name or an address is reached from its own machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def error_response(status: int, code: ErrorCode, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A response with an ErrorAnswer as its body."""
    answer = ErrorAnswer(error=Problem(code=code, message=message))
    return JSONResponse(answer.model_dump(), status_code=status, headers=headers)


class Guard:
    """ASGI middleware that refuses requests before the application reads them.

    Status 401: a wrong or missing token. 403: without a token, a host name that is not loopback's, or a web page of
    another origin. 413: a body that is too large. 503 with Retry-After: a request beyond `max_queue`. A request counts
    from the end of its body on, so a client that sends slowly takes nobody's place.

    Args:
        app: the application behind it.
        token: bearer token of every request; None: no token is needed.
        max_body: maximum size of a request's body in bytes; of a body in JSON, also MAX_JSON.
        max_queue: maximum number of concurrent requests.
        registry: registry for the latency histogram, samr1_request_seconds.
    """

    def __init__(
        self, app: ASGIApp, token: str | None, max_body: int, max_queue: int, registry: CollectorRegistry
    ) -> None:
        self._app, self._token, self._max_body, self._max_queue = app, token, max_body, max_queue
        self._active = 0
        self._bodies = 0  # bytes of the larger bodies in memory
        self._latency = Histogram(
            "samr1_request_seconds",
            "Time from a request's headers to the end of its answer",
            ["path", "status"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refusal = self._stranger(headers)
        if refusal is None and scope["path"].startswith(OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        limit = self._max_body if scope["path"].startswith(UPLOADS) else min(self._max_body, MAX_JSON)
        if refusal is None:
            refusal = self._unknown(headers) or self._excess(headers, limit)
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self._accept(scope, receive, send, limit)

    async def _accept(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        started, status, received, counted, kept = time.perf_counter(), 500, 0, False, 0
        in_memory = not scope["path"].startswith(UPLOADS)

        async def counting_receive() -> Message:
            nonlocal received, counted, kept
            message = await receive()
            more = len(message.get("body", b""))
            received += more
            if received > limit:
                raise HTTPException(413, _too_large(limit))
            if in_memory and received > SMALL_BODY:
                if self._bodies + more > MAX_BODIES:
                    raise _busy("the bodies of other requests take all the memory for bodies")
                kept += more
                self._bodies += more
            if message["type"] == "http.request" and not message.get("more_body") and not counted:
                if self._active >= self._max_queue:
                    raise _busy(self._full())
                counted = True
                self._active += 1
            return message

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, counting_receive, noting_send)
        finally:
            self._active -= counted
            self._bodies -= kept
            path = getattr(scope.get("route"), "path", "other")
            self._latency.labels(path, str(status)).observe(time.perf_counter() - started)

    def _stranger(self, headers: dict[bytes, bytes]) -> JSONResponse | None:
        """The refusal of a browser that a foreign page sends here, by its own name or by one that it made loopback's.

        starlette's TrustedHostMiddleware has no origin, no range of addresses, and answers in plain text.
        """
        if self._token is not None:
            return None
        host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if not is_loopback(name):
            message = f"the host name is {host[:100]!r}. A server without a token answers to loopback's names only"
            return error_response(403, "origin", message)
        if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host.lower():
            message = f"a page of {origin.decode('latin-1')[:100]!r} asks, which is not this server's"
            return error_response(403, "origin", message)
        return None

    def _unknown(self, headers: dict[bytes, bytes]) -> JSONResponse | None:
        given = headers.get(b"authorization", b"")
        if self._token is None or secrets.compare_digest(given, f"Bearer {self._token}".encode()):
            return None
        fault = "the bearer token is wrong" if given else "a bearer token is needed: Authorization: Bearer <token>"
        return error_response(401, "token", fault, {"WWW-Authenticate": "Bearer"})

    def _excess(self, headers: dict[bytes, bytes], limit: int) -> JSONResponse | None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            return error_response(413, "body_too_large", _too_large(limit), {"Connection": "close"})
        if self._active >= self._max_queue:
            return error_response(503, "busy", self._full(), {"Retry-After": "1"})
        return None

    def _full(self) -> str:
        return f"{self._active} requests are running, which is the maximum. Try again later"


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit} bytes"


def _busy(message: str) -> HTTPException:
    return HTTPException(503, message, {"Retry-After": "1"})
