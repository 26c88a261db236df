"""Continuous collection of waiting requests into batches: while one batch generates, the next one gathers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

R = TypeVar("R")
A = TypeVar("A")


class Batcher(Generic[R, A]):
    """Answers requests through `work`, a function of a batch, which runs in a thread of its own, one call at a time.

    A batch holds at most `max_batch` requests. It starts when it is full, or when no request has arrived for `quiet`
    seconds: the rollouts of a step arrive one after the other as their prompts are prepared, and a batch of one would
    keep all others waiting for a whole generation.
    """

    def __init__(self, work: Callable[[Sequence[R]], Sequence[A]], max_batch: int, quiet: float) -> None:
        self._work = work
        self._max_batch = max_batch
        self._quiet = quiet
        self._waiting: list[tuple[R, asyncio.Future[A]]] = []
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._serving: asyncio.Task[None] | None = None

    async def submit(self, request: R) -> A:
        """The answer to one request. An exception of its batch is raised for each request of that batch."""
        loop = asyncio.get_running_loop()
        if self._serving is None:
            self._serving = loop.create_task(self._serve())
        answer: asyncio.Future[A] = loop.create_future()
        self._waiting.append((request, answer))
        self._arrival.set()
        return await answer

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run something else in the same thread, so between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def _serve(self) -> None:
        while True:
            batch = await self._collect()
            try:
                answers = await self.run(self._work, [request for request, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():  # whoever asked may be gone
                        future.set_result(answer)
            except Exception as error:  # handed to whoever asked; the next batch may well succeed
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    async def _collect(self) -> list[tuple[R, asyncio.Future[A]]]:
        arrived = True
        while arrived and len(self._waiting) < self._max_batch:
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), self._quiet if self._waiting else None)
            except asyncio.TimeoutError:
                arrived = False
        batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
        return batch
