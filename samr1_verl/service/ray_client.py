"""The client of the Ray Serve application; it starts the application where it does not run.

Its replicas have the client's weights and version, which are in the application's name, so answers carry no identity.
They are checked as those of a server are (answers.py).
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
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
from samr1_verl.service.answers import sound_overlap, sound_predictions
from samr1_verl.service.counters import Counters
from samr1_verl.service.place import log_place
from samr1_verl.service.retry import TransientError, ask_service

# Errors that are not retried: another attempt would fail in the same way.
FINAL = (ImageError, MaskError, ConfigError)
GATHER_S = 0.002  # time in which calls for one image are collected into one request: each request costs CPU time


@dataclass
class _Batch:
    """Calls for one image that become one request: the arguments and the future of each call."""

    calls: list[tuple] = field(default_factory=list)
    results: list[asyncio.Future[Any]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class RayClient:
    """Implements `client.Client` with the replicas of one configuration in this process's Ray cluster."""

    def __init__(self, config: SegmenterConfig) -> None:
        self._config, self._service = config, config.service
        self._handle: Any = None
        self._starter: Any = None
        self._beating: threading.Thread | None = None
        # Batches that still gather calls, by event loop (a future belongs to its loop), method, path and digest.
        self._open: dict[tuple[asyncio.AbstractEventLoop, str, str, str], _Batch] = {}

    async def segment(self, image: str | Path, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]:
        """As `engine.Engine.segment`. Raises ServiceError when no replica answers in time."""

        async def attempt() -> list[Prediction]:
            found = await self._batched("segment", str(image), sha256, list(prompts))
            return sound_predictions(found, len(prompts))

        return await self._persist(image, attempt)

    async def overlap(self, image: str | Path, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth) -> Overlap:
        """As `engine.Engine.overlap`. Raises ServiceError when no replica answers in time."""

        async def attempt() -> Overlap:
            return sound_overlap(await self._batched("overlap", str(image), sha256, list(prompts), truth), truth)

        return await self._persist(image, attempt)

    async def prefetch(self, image: str | Path, sha256: str) -> None:
        """As `engine.Engine.prefetch`. Raises ServiceError when no replica answers in time."""
        await self._persist(image, partial(self._request, "prefetch", sha256, str(image), sha256))

    async def counters(self) -> Counters:
        """The counters of one replica, chosen by Ray Serve."""
        handle = await self._started()
        return await handle.counters.remote()

    async def _persist(self, image: str | Path, attempt: Callable[[], Awaitable[Any]]) -> Any:
        return await ask_service(attempt, self._service.timeout_s, self._service.attempt_s, str(image))

    async def _batched(self, method: str, image: str, sha256: str, *arguments: Any) -> Any:
        """The result of one call, sent in one request with other calls for its image.

        Raises:
            TransientError, or one of FINAL.
        """
        loop = asyncio.get_running_loop()
        key = (loop, method, image, sha256)
        batch = self._open.setdefault(key, _Batch())
        result = loop.create_future()
        batch.calls.append(arguments)
        batch.results.append(result)
        if batch.task is None:
            batch.task = loop.create_task(self._send(key, batch))
        try:
            outcome = await result
        except asyncio.CancelledError:
            if all(waiting.cancelled() for waiting in batch.results):
                batch.task.cancel()  # no caller waits for the batch any more
            raise
        if isinstance(outcome, FINAL):
            raise outcome
        if isinstance(outcome, Exception):
            raise TransientError(str(outcome)) from outcome
        return outcome

    async def _send(self, key: tuple[asyncio.AbstractEventLoop, str, str, str], batch: _Batch) -> None:
        _, method, image, sha256 = key
        try:
            await asyncio.sleep(GATHER_S)
        finally:
            del self._open[key]
        try:
            outcomes = await self._request("together", sha256, method, image, sha256, batch.calls)
            if len(outcomes) != len(batch.calls):
                raise TransientError(f"{len(outcomes)} answers to {len(batch.calls)} calls")
        except Exception as error:  # the request as a whole failed; each call retries by itself
            outcomes = [error] * len(batch.calls)
        for result, outcome in zip(batch.results, outcomes, strict=True):
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
            self._handle = None  # the application may have ended: the next attempt starts it again
            raise TransientError(f"{type(error).__name__}: {error}") from error

    async def _started(self) -> Any:
        if self._handle is None:
            if not ray.is_initialized():
                await asyncio.to_thread(ray.init)
            handle, starter, first = await ray_app.start(self._config)
            if self._beating is None:
                self._beating = threading.Thread(target=_beat, args=(weakref.ref(self),), daemon=True)
                self._beating.start()
            self._starter, self._handle = starter, handle
            if first:
                log_place((await handle.environment.remote())["place"], self._config)
        return self._handle


def _beat(client: weakref.ref[RayClient]) -> None:
    """Report to the application's starter that a client is alive, as long as it is."""
    while (alive := client()) is not None:
        if alive._starter is not None and ray.is_initialized():
            with suppress(
                Exception
            ):  # the starter's cluster has ended; the next request finds that out and starts anew
                alive._starter.beat.remote()
        del alive  # else the client would live as long as this thread
        time.sleep(ray_app.BEAT_S)
