"""The application of `samr1 playground`: a page for the user's own images, with FastAPI and the report's scripts.

A web site in the same browser can send requests to the loopback address. Therefore the Host header must name that
address, against DNS rebinding, and a request with an Origin header must come from the page itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samr1_verl.policies.base import PolicyError
from samr1_verl.prompts.templates import SentenceError
from samr1_verl.report.gallery import Gallery, data_url
from samr1_verl.report.page import render
from samr1_verl.rows.record import read_table, record_at, resolve_image
from samr1_verl.scoring.sample import Sample
from samr1_verl.service.guard import Guard
from samr1_verl.service.http_server import Limits, add_refusals
from samr1_verl.service.images import Images

HOSTS = ["127.0.0.1", "localhost"]
LIMITS = Limits(max_body=30_000_000, max_pixels=50_000_000, max_queue=8, upload_bytes=300_000_000)
LONG_SIDE = 1024  # maximum length of the longer side of an answer's image, in pixels
EXAMPLES, EXAMPLE_SIDE = 6, 160  # number of examples, and the longer side of their thumbnails in pixels


class Asked(Protocol):
    """The part of policies.predict.Predictor that the page uses."""

    async def predict(self, image: str | Path, sentence: str) -> Sample: ...


@dataclass(frozen=True)
class Example:
    """An image and a sentence that the page offers."""

    image: Path
    sentence: str


def examples_from(file: Path) -> list[Example]:
    """A few rows of a parquet file, spread evenly over it. Raises DataError."""
    table = read_table(file)
    rows = [i * table.num_rows // EXAMPLES for i in range(min(EXAMPLES, table.num_rows))]
    records = [record_at(table, row, file) for row in rows]
    return [Example(resolve_image(record, file), record.sentence) for record in records]


def create_app(predictor: Asked, title: str, examples: Sequence[Example] = (), limits: Limits = LIMITS) -> FastAPI:
    """The ASGI application of the page.

    Args:
        predictor: answers the questions, one at a time.
        title: title of the page.
        examples: images with a sentence that the page offers.
        limits: limits of an upload.

    Raises:
        ImageError: the image of an example is missing or unreadable.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_routes(app, predictor, _page(title, examples, limits), examples, limits)
    add_refusals(app)
    app.add_middleware(
        Guard, token=None, max_body=limits.max_body, max_queue=limits.max_queue, registry=CollectorRegistry()
    )
    app.add_middleware(SameOrigin)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    return app


def _page(title: str, examples: Sequence[Example], limits: Limits) -> str:
    shown = [{"sentence": example.sentence, "src": data_url(example.image, EXAMPLE_SIDE)} for example in examples]
    return render("playground", title, {"examples": shown, "max_bytes": limits.max_body}, connect="'self'")


def _add_routes(app: FastAPI, predictor: Asked, page: str, examples: Sequence[Example], limits: Limits) -> None:
    images, turn = Images([], limits.upload_bytes, limits.max_pixels), asyncio.Lock()

    @app.exception_handler(SentenceError)
    async def refuse_sentence(_: Request, error: Exception) -> Response:
        return _refusal(422, "sentence", str(error))

    @app.exception_handler(PolicyError)
    async def refuse(_: Request, error: Exception) -> Response:
        return _refusal(500, "policy", str(error))

    @app.get("/", response_class=HTMLResponse)
    async def show() -> str:
        return page

    @app.get("/examples/{number}")
    async def example(number: int) -> FileResponse:
        if not 0 <= number < len(examples):
            raise HTTPException(404, f"there are {len(examples)} examples")
        return FileResponse(examples[number].image)

    @app.post("/predict")
    async def predict(
        request: Request, sentence: Annotated[str, Query(min_length=1, max_length=1000, pattern=r"\S")]
    ) -> dict[str, Any]:
        """The policy's answer about the image file in the request's body."""
        body = await request.body()
        sha256 = hashlib.sha256(body).hexdigest()
        with images.held(sha256):
            path, _ = await images.add(sha256, _once(body))
            began = time.monotonic()
            async with turn:
                sample = await predictor.predict(path, sentence.strip())
            gallery = Gallery(images=1, long_side=LONG_SIDE)
            shown = await asyncio.to_thread(gallery.sample, sample)
        return {**gallery.as_json(), "sample": shown, "seconds": time.monotonic() - began}


class SameOrigin:
    """ASGI middleware: refuses requests from other pages, and forbids browsers to embed this page in another page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{headers['host']}":
            await _refusal(403, "origin", f"{origin} is not this page")(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added["X-Content-Type-Options"] = "nosniff"
                added["X-Frame-Options"] = "DENY"
                added["Cross-Origin-Resource-Policy"] = "same-origin"
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _refusal(status: int, code: str, message: str) -> JSONResponse:
    """A refusal in the form of the segmenter's service (service/wire.py)."""
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status)
