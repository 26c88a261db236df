"""The engine behind HTTP: `samr1 serve`. /docs shows its OpenAPI page.

Every answer that is no success is an ErrorAnswer with a code that a program can act on. Nothing here scores: a bad
request is refused, a segmenter that fails is status 500.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException as StarletteHTTPException

from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import MaskError, encode_rle
from samr1_verl.segmenters.base import SegmenterError
from samr1_verl.service.engine import Engine, UnknownImageError
from samr1_verl.service.guard import Guard, error_response
from samr1_verl.service.images import Images, OutsideRootsError
from samr1_verl.service.wire import (
    Accepted,
    Digest,
    ErrorAnswer,
    ErrorCode,
    Health,
    ImageAnswer,
    ImageRef,
    PrefetchRequest,
    SegmentAnswer,
    SegmentRequest,
    WireOverlap,
    WirePrediction,
)

# Exception, status, code; the first that fits.
REFUSALS: tuple[tuple[type[Exception], int, ErrorCode], ...] = (
    (UnknownImageError, 404, "unknown_image"),
    (OutsideRootsError, 403, "outside_roots"),
    (ImageError, 422, "image"),
    (MaskError, 422, "truth"),
    (SegmenterError, 500, "segmenter"),
)


@dataclass(frozen=True)
class Limits:
    """What a server accepts. `stuck_s`: a computation that takes longer makes it unhealthy."""

    max_body: int = 64_000_000
    max_pixels: int = 50_000_000
    max_queue: int = 512
    upload_bytes: int = 2_000_000_000
    stuck_s: float = 300.0


def create_app(engine: Engine, roots: list[Path], token: str | None, limits: Limits) -> FastAPI:
    """The ASGI application of one engine, which it does not close.

    Args:
        engine: made with `limits.max_pixels`.
        roots: folders whose images may be named by path.
        token: bearer token that requests must carry, or None.
        limits: what is accepted.
    """
    images, registry = Images(roots, limits.upload_bytes, limits.max_pixels), CollectorRegistry()
    registry.register(EngineCollector(engine))

    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 413, 422, 500, 503)
    }
    scheme = [Depends(HTTPBearer(auto_error=False, description="checked before the request is read"))]
    app = FastAPI(title="samr1 segmenter", responses=errors, dependencies=scheme)
    app.add_middleware(Guard, token=token, max_body=limits.max_body, max_queue=limits.max_queue, registry=registry)
    _add_routes(app, engine, images, registry, limits)
    add_refusals(app)
    return app


def _add_routes(app: FastAPI, engine: Engine, images: Images, registry: CollectorRegistry, limits: Limits) -> None:
    async def find(image: ImageRef) -> Path | None:
        return await asyncio.to_thread(images.find, image.path, image.sha256)

    @app.post("/v1/segment")
    async def segment(request: SegmentRequest) -> SegmentAnswer:
        """Masks of prompts, their overlap with the true masks, or both."""
        if request.truth is None and not request.masks:
            raise HTTPException(422, "neither truth nor masks: nothing is asked for")
        path, sha256 = await find(request.image), request.image.sha256
        size = await engine.size(path, sha256)
        for index, one in enumerate(request.prompts):
            if not one.within(size):
                raise HTTPException(422, f"prompts.{index} lies outside the image of {size[1]}x{size[0]} pixels")
        prompts, answer = [one.prompt() for one in request.prompts], SegmentAnswer(size=size)
        if request.truth is not None:
            found = await engine.overlap(path, sha256, prompts, request.truth)
            pixels = found.pixels
            iou = pixels.intersection / pixels.union if pixels.union else 0.0
            overlap = WireOverlap(**asdict(pixels), iou=iou, score=found.score)
            answer = answer.model_copy(update={"overlap": overlap})
        if request.masks:
            predictions = await engine.segment(path, sha256, prompts)
            masks = await asyncio.to_thread(lambda: [encode_rle(one.mask) for one in predictions])
            wire = [WirePrediction(score=one.score, mask=mask) for one, mask in zip(predictions, masks, strict=True)]
            answer = answer.model_copy(update={"predictions": wire})
        return answer

    @app.post("/v1/prefetch", status_code=202)
    async def prefetch(request: PrefetchRequest) -> Accepted:
        """Start to encode an image that requests will name."""
        await engine.prefetch(await find(request.image), request.image.sha256)
        return Accepted()

    @app.put(
        "/v1/images/{sha256}",
        status_code=201,
        openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
    )
    async def upload(sha256: Digest, request: Request) -> ImageAnswer:
        """Bring an image file that the server cannot read by path, and start to encode it."""
        path, size = await images.add(sha256, request.stream())
        await engine.prefetch(path, sha256)
        return ImageAnswer(sha256=sha256, size=size)

    @app.get("/health")
    async def health() -> Health:
        """Needs no token. Status 500 when the segmenter is stuck."""
        if (busy := engine.busy_seconds()) > limits.stuck_s:
            raise SegmenterError(f"the running computation has taken {busy:.0f} s")
        return Health(segmenter=engine.identity, busy_seconds=busy)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def add_refusals(app: FastAPI) -> None:
    """Answer what the requests of an application cannot have with an ErrorAnswer."""
    for kind, status, code in REFUSALS:

        async def refuse(_: Request, error: Exception, status: int = status, code: ErrorCode = code) -> Response:
            return error_response(status, code, str(error))

        app.add_exception_handler(kind, refuse)

    async def refuse_values(_: Request, error: RequestValidationError) -> Response:
        # Without the values: NaN among them would not go into JSON, and 10,000 points not into a message.
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:10]]
        return error_response(422, "request", "; ".join(lines)[:2000])

    async def refuse_request(_: Request, error: StarletteHTTPException) -> Response:
        code: ErrorCode = "body_too_large" if error.status_code == 413 else "request"
        return error_response(error.status_code, code, str(error.detail), dict(error.headers or {}))

    app.add_exception_handler(RequestValidationError, refuse_values)  # type: ignore[arg-type]
    app.add_exception_handler(StarletteHTTPException, refuse_request)  # type: ignore[arg-type]


class EngineCollector(Collector):
    """An engine's counters for Prometheus, read when they are scraped."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for name, value in vars(self._engine.counters()).items():
            family = GaugeMetricFamily if name in ("cached_bytes", "queued") else CounterMetricFamily
            yield family(f"samr1_{name}", f"Engine counter {name}", value=value)
