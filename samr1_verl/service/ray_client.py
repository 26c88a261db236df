"""The client of the Ray Serve application, which it starts if nobody has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from samr1_verl.config import ConfigError, SegmenterConfig
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import MaskError
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters.base import Prediction, SegmenterError
from samr1_verl.service import ray_app
from samr1_verl.service.counters import Counters
from samr1_verl.service.retry import TransientError, ask_service

# Faults that another attempt would meet again.
FINAL = (ImageError, MaskError, ConfigError)
GATHER_S = 0.002  # calls about one image within it travel together: each request costs both processes computation


@dataclass
class _Flight:
    """Calls about one image that become one request: their arguments, and where each result goes."""

    calls: list[tuple] = field(default_factory=list)
    results: list[asyncio.Future[Any]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class RayClient:
    """Implements `client.Client` with the replicas of one configuration, in the cluster this process belongs to."""

    def __init__(self, config: SegmenterConfig) -> None:
        self._config, self._service = config, config.service
        self._handle: Any = None
        # By event loop, since futures belong to one, then method, path and digest.
        self._boarding: dict[tuple[asyncio.AbstractEventLoop, str, str, str], _Flight] = {}

    async def segment(self, image: str | Path, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]:
        """As `engine.Engine.segment`. Raises ServiceError when no replica answers in time."""
        return await self._persist(image, partial(self._board, "segment", str(image), sha256, list(prompts)))

    async def overlap(self, image: str | Path, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth) -> Overlap:
        """As `engine.Engine.overlap`. Raises ServiceError when no replica answers in time."""
        return await self._persist(image, partial(self._board, "overlap", str(image), sha256, list(prompts), truth))

    async def prefetch(self, image: str | Path, sha256: str) -> None:
        """As `engine.Engine.prefetch`. Raises ServiceError when no replica answers in time."""
        await self._persist(image, partial(self._request, "prefetch", sha256, str(image), sha256))

    async def counters(self) -> Counters:
        """Of one replica, any of them: of all, where there is one."""
        handle = await self._started()
        return await handle.counters.remote()

    async def _persist(self, image: str | Path, attempt: Callable[[], Awaitable[Any]]) -> Any:
        return await ask_service(attempt, self._service.timeout_s, self._service.attempt_s, str(image))

    async def _board(self, method: str, image: str, sha256: str, *arguments: Any) -> Any:
        """One call's result; it travels with the others about its image. Raises TransientError or one of FINAL."""
        loop = asyncio.get_running_loop()
        key = (loop, method, image, sha256)
        flight = self._boarding.setdefault(key, _Flight())
        result = loop.create_future()
        flight.calls.append(arguments)
        flight.results.append(result)
        if flight.task is None:
            flight.task = loop.create_task(self._fly(key, flight))
        try:
            outcome = await result
        except asyncio.CancelledError:
            if all(waiting.cancelled() for waiting in flight.results):
                flight.task.cancel()  # nobody waits for any of it
            raise
        if isinstance(outcome, FINAL):
            raise outcome
        if isinstance(outcome, Exception):
            raise TransientError(str(outcome)) from outcome
        return outcome

    async def _fly(self, key: tuple[asyncio.AbstractEventLoop, str, str, str], flight: _Flight) -> None:
        _, method, image, sha256 = key
        try:
            await asyncio.sleep(GATHER_S)
        finally:
            del self._boarding[key]
        try:
            outcomes = await self._request("together", sha256, method, image, sha256, flight.calls)
        except Exception as error:  # of the request as a whole: each call has its own attempts
            outcomes = [error] * len(flight.calls)
        for result, outcome in zip(flight.results, outcomes, strict=True):
            if not result.done():
                result.set_result(outcome)

    async def _request(self, method: str, session: str, *arguments: Any) -> Any:
        try:
            handle = await self._started()
            return await getattr(handle.options(session_id=session), method).remote(*arguments)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, FINAL):
                raise cause from error
            raise TransientError(str(cause)) from error
        except (RayError, RayServeException, SegmenterError) as error:
            self._handle = None  # the application itself may be gone
            raise TransientError(f"{type(error).__name__}: {error}") from error

    async def _started(self) -> Any:
        if self._handle is None:
            if not ray.is_initialized():
                await asyncio.to_thread(ray.init)
            self._handle = await ray_app.start(self._config)
        return self._handle
