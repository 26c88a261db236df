"""The engine behind HTTP, as `samr1 serve` runs it. Its address /docs is the OpenAPI page, with files of this server.

Every answer other than a success is an ErrorAnswer with a code for programs. A bad request is refused with status 4xx,
a fault of the segmenter is status 500; neither becomes a score.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException as StarletteHTTPException

from samr1_verl.config import ConfigError
from samr1_verl.geometry.giou import COUNTS
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import MaskError, encode_rle
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import RowError
from samr1_verl.segmenters.base import SegmenterError
from samr1_verl.service.decodes import masks_at_once
from samr1_verl.service.embeddings import UnknownImageError
from samr1_verl.service.engine import Engine
from samr1_verl.service.guard import Guard, error_response
from samr1_verl.service.images import Images, OutsideRootsError, UploadsFullError, UploadTooLargeError
from samr1_verl.service.json_bodies import JsonRoute
from samr1_verl.service.wire import (
    Accepted,
    Digest,
    ErrorAnswer,
    ErrorCode,
    Health,
    ImageAnswer,
    PrefetchRequest,
    SegmentAnswer,
    SegmentRequest,
    WireOverlap,
    WirePrediction,
)

# Exception, status, code; the first that matches is used.
REFUSALS: tuple[tuple[type[Exception], int, ErrorCode], ...] = (
    (UnknownImageError, 404, "unknown_image"),
    (OutsideRootsError, 403, "outside_roots"),
    (ImageError, 422, "image"),
    (MaskError, 422, "truth"),
    (UploadTooLargeError, 413, "body_too_large"),
    (UploadsFullError, 503, "busy"),
    (SegmenterError, 500, "segmenter"),
    (RowError, 422, "truth"),
    (ConfigError, 422, "request"),
)

MANY_BYTES = 4_000_000  # of masks, one byte per pixel; requests for more take turns
MANY_AT_ONCE = 4


@dataclass(frozen=True)
class Limits:
    """The limits of a server."""

    max_body: int = 64_000_000  # bytes per request
    max_pixels: int = 50_000_000  # pixels per image
    max_queue: int = 512  # concurrent requests
    upload_bytes: int = 2_000_000_000  # size of all kept uploads together
    stuck_s: float = 300.0  # seconds of one computation after which /health reports an error


Routes = Callable[[FastAPI, Engine, Images], None]


def create_app(
    engine: Engine, roots: list[Path], token: str | None, limits: Limits, routes: Sequence[Routes] = ()
) -> FastAPI:
    """The ASGI application of one engine. The caller closes the engine.

    Args:
        engine: made with the same `max_pixels` as `limits`.
        roots: folders whose images requests may name by path.
        token: bearer token of every request; None: no token is needed.
        limits: sizes and times.
        routes: functions that add further routes.
    """
    images, registry = Images(roots, limits.upload_bytes, limits.max_pixels), CollectorRegistry()
    registry.register(EngineCollector(engine))

    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 413, 422, 500, 503)
    }
    scheme = [Depends(HTTPBearer(auto_error=False, description="checked before the request is read"))]
    app = FastAPIOffline(redoc_url=None, title="samr1 segmenter", responses=errors, dependencies=scheme)
    app.router.route_class = JsonRoute
    app.add_middleware(Guard, token=token, max_body=limits.max_body, max_queue=limits.max_queue, registry=registry)
    _add_routes(app, engine, images, registry, limits)
    for add in routes:
        add(app, engine, images)
    add_refusals(app)
    return app


def _add_routes(app: FastAPI, engine: Engine, images: Images, registry: CollectorRegistry, limits: Limits) -> None:
    @app.post("/v1/segment")
    async def segment(request: SegmentRequest) -> SegmentAnswer:
        """Masks of prompts, their overlap with the true masks, or both."""
        if request.truth is None and not request.masks:
            raise HTTPException(422, "nothing is asked for: set truth, masks or both")
        async with images.use(request.image.path, request.image.sha256) as path:
            return await answer_about(path, request)

    async def answer_about(path: Path | None, request: SegmentRequest) -> SegmentAnswer:
        sha256 = request.image.sha256
        size = await engine.size(path, sha256)
        for index, prompt in enumerate(request.prompts):
            if not prompt.within(size):
                raise HTTPException(422, f"prompts.{index} lies outside the image of {size[1]}x{size[0]} pixels")
        prompts = [prompt.prompt() for prompt in request.prompts]
        answer = SegmentAnswer(segmenter=engine.identity, size=size)
        if request.truth is not None:
            overlap = await engine.overlap(path, sha256, prompts, request.truth)
            pixels = overlap.pixels
            iou = pixels.intersection / pixels.union if pixels.union else 0.0
            counts = {name: getattr(pixels, name) for name in COUNTS}
            wire_overlap = WireOverlap(**counts, iou=iou, score=overlap.score)
            answer = answer.model_copy(update={"overlap": wire_overlap})
        if request.masks:
            wire: list[WirePrediction] = []
            portion = masks_at_once(size)
            for start in range(0, len(prompts), portion):  # the next masks are made when these are compressed
                wire += await masks_of(path, sha256, prompts[start : start + portion], size)
            answer = answer.model_copy(update={"predictions": wire})
        return answer

    many_masks = asyncio.Semaphore(MANY_AT_ONCE)

    async def masks_of(
        path: Path | None, sha256: str, prompts: list[Prompt], size: tuple[int, int]
    ) -> list[WirePrediction]:
        many = len(prompts) * size[0] * size[1] > MANY_BYTES
        async with many_masks if many else contextlib.nullcontext():
            predictions = await engine.segment(path, sha256, prompts)
            return await asyncio.to_thread(
                lambda: [WirePrediction(score=one.score, mask=encode_rle(one.mask)) for one in predictions]
            )

    @app.post("/v1/prefetch", status_code=202)
    async def prefetch(request: PrefetchRequest) -> Accepted:
        """Start to encode an image that later requests will name."""
        sha256 = request.image.sha256
        async with images.use(request.image.path, sha256) as path:
            await encode_ahead(path, sha256)
        return Accepted(segmenter=engine.identity)

    async def encode_ahead(path: Path | None, sha256: str) -> None:
        images.hold(sha256)  # until its embedding is made
        await engine.prefetch(path, sha256, lambda: images.release(sha256))

    @app.put(
        "/v1/images/{sha256}",
        status_code=201,
        openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
    )
    async def upload(sha256: Digest, request: Request) -> ImageAnswer:
        """Upload an image file that the server cannot read by path, and start to encode it."""
        with images.held(sha256):
            path, size = await images.add(sha256, request.stream())
            await encode_ahead(path, sha256)
        return ImageAnswer(segmenter=engine.identity, sha256=sha256, size=size)

    @app.get("/health")
    async def health() -> Health:
        """Health of the server, without a token. Status 500: one computation takes longer than the limit."""
        if (busy := engine.busy_seconds()) > limits.stuck_s:
            raise SegmenterError("segmenter_stuck", engine.identity, f"the running computation has taken {busy:.0f} s")
        return Health(segmenter=engine.identity, busy_seconds=busy)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters and latency in the format of Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def add_refusals(app: FastAPI) -> None:
    """Make every refusal and error of an application an ErrorAnswer."""
    for kind, status, code in REFUSALS:

        async def refuse(_: Request, error: Exception, status: int = status, code: ErrorCode = code) -> Response:
            return error_response(status, code, str(error), {"Retry-After": "1"} if status == 503 else None)

        app.add_exception_handler(kind, refuse)

    async def refuse_values(_: Request, error: RequestValidationError) -> Response:
        # Without the values: JSON has no NaN, and 10,000 points are too long for a message.
        lines = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:10]]
        return error_response(422, "request", "; ".join(lines)[:2000])

    async def refuse_request(_: Request, error: StarletteHTTPException) -> Response:
        codes: dict[int, ErrorCode] = {413: "body_too_large", 503: "busy"}
        code = codes.get(error.status_code, "request")
        return error_response(error.status_code, code, str(error.detail), dict(error.headers or {}))

    app.add_exception_handler(RequestValidationError, refuse_values)  # type: ignore[arg-type]
    app.add_exception_handler(StarletteHTTPException, refuse_request)  # type: ignore[arg-type]


class EngineCollector(Collector):
    """An engine's counters for Prometheus, read at every scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for name, value in vars(self._engine.counters()).items():
            family = GaugeMetricFamily if name in ("cached_bytes", "queued") else CounterMetricFamily
            yield family(f"samr1_{name}", f"Engine counter {name}", value=value)
