"""The client of the Ray Serve application, which it starts if nobody has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from samr1_verl.config import ConfigError, SegmenterConfig, ServiceConfig
from samr1_verl.frames import ImageError
from samr1_verl.ground_truth import GroundTruth
from samr1_verl.masks import MaskError
from samr1_verl.segmenters.base import Prediction, Prompt, SegmenterError
from samr1_verl.service import ray_app
from samr1_verl.service.engine import Counters
from samr1_verl.service.overlap import Overlap
from samr1_verl.service.retry import TransientError, persist

# What another attempt would meet again.
FINAL = (ImageError, MaskError, ConfigError)


class RayClient:
    """Implements `client.Client` with the replicas of one configuration, in the cluster this process belongs to."""

    def __init__(self, segmenter: SegmenterConfig, service: ServiceConfig) -> None:
        self._segmenter, self._service = segmenter, service
        self._handle: Any = None

    async def segment(self, image: str | Path, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]:
        """As `engine.Engine.segment`. Raises ServiceError when no replica answers in time."""
        return await self._persist("segment", image, sha256, list(prompts))

    async def overlap(self, image: str | Path, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth) -> Overlap:
        """As `engine.Engine.overlap`. Raises ServiceError when no replica answers in time."""
        return await self._persist("overlap", image, sha256, list(prompts), truth)

    async def prefetch(self, image: str | Path, sha256: str) -> None:
        """As `engine.Engine.prefetch`. Raises ServiceError when no replica answers in time."""
        await self._persist("prefetch", image, sha256)

    async def counters(self) -> Counters:
        """Of one replica, any of them: of all, where there is one."""
        handle = await self._started()
        return await handle.counters.remote()

    async def _persist(self, method: str, image: str | Path, sha256: str, *arguments: Any) -> Any:
        async def attempt() -> Any:
            try:
                handle = await self._started()
                return await getattr(handle.options(session_id=sha256), method).remote(str(image), sha256, *arguments)
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, FINAL):
                    raise cause from error
                raise TransientError(str(cause)) from error
            except (RayError, RayServeException, SegmenterError) as error:
                self._handle = None  # the application itself may be gone
                raise TransientError(f"{type(error).__name__}: {error}") from error

        return await persist(attempt, self._service.timeout_s, self._service.attempt_s, str(image))

    async def _started(self) -> Any:
        if self._handle is None:
            if not ray.is_initialized():
                await asyncio.to_thread(ray.init)
            self._handle = await ray_app.start(self._segmenter, self._service)
        return self._handle
