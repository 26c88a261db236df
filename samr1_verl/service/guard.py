"""The middleware of `samr1 serve`: it checks token, size and queue of each request and measures its latency."""

from __future__ import annotations

import secrets
import time

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samr1_verl.service.wire import ErrorAnswer, ErrorCode, Problem

OPEN_PATHS = ("/health",)  # no checks


def error_response(status: int, code: ErrorCode, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A response with an ErrorAnswer as its body."""
    answer = ErrorAnswer(error=Problem(code=code, message=message))
    return JSONResponse(answer.model_dump(), status_code=status, headers=headers)


class Guard:
    """ASGI middleware that refuses requests before the application reads them.

    A wrong or missing token gets status 401, a body that is too large 413, a request beyond `max_queue` 503 with
    Retry-After.

    Args:
        app: the application behind it.
        token: bearer token of every request; None: no token is needed.
        max_body: maximum size of a request's body in bytes.
        max_queue: maximum number of concurrent requests.
        registry: registry for the latency histogram, samr1_request_seconds.
    """

    def __init__(
        self, app: ASGIApp, token: str | None, max_body: int, max_queue: int, registry: CollectorRegistry
    ) -> None:
        self._app, self._token, self._max_body, self._max_queue = app, token, max_body, max_queue
        self._active = 0
        self._latency = Histogram(
            "samr1_request_seconds",
            "Time from a request's headers to the end of its answer",
            ["path", "status"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if (refusal := self._refusal(headers)) is not None:
            await refusal(scope, receive, send)
            return
        started, status, received = time.perf_counter(), 500, 0

        async def counting_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body:
                raise HTTPException(413, self._too_large())
            return message

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._active += 1
        try:
            await self._app(scope, counting_receive, noting_send)
        finally:
            self._active -= 1
            path = getattr(scope.get("route"), "path", "other")
            self._latency.labels(path, str(status)).observe(time.perf_counter() - started)

    def _refusal(self, headers: dict[bytes, bytes]) -> JSONResponse | None:
        given = headers.get(b"authorization", b"")
        if self._token is not None and not secrets.compare_digest(given, f"Bearer {self._token}".encode()):
            fault = "the bearer token is wrong" if given else "a bearer token is needed: Authorization: Bearer <token>"
            return error_response(401, "token", fault, {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body:
            return error_response(413, "body_too_large", self._too_large(), {"Connection": "close"})
        if self._active >= self._max_queue:
            message = f"{self._active} requests are running, which is the maximum. Try again later"
            return error_response(503, "busy", message, {"Retry-After": "1"})
        return None

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_body} bytes"
