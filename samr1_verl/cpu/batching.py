"""Collection of requests into batches: while one batch generates, the next one is collected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

R = TypeVar("R")
A = TypeVar("A")


class Batcher(Generic[R, A]):
    """Answers requests in batches with the function `work`, which runs in its own thread, one call at a time.

    A batch starts when it is full, or when no request has arrived for some time: the rollouts of a step arrive one
    after the other, and after a batch with the first request alone all others would wait for a whole generation.

    Args:
        work: answers of a batch, in the order of its requests.
        max_batch: maximum number of requests per batch.
        quiet: seconds without a new request after which a batch starts.
    """

    def __init__(self, work: Callable[[Sequence[R]], Sequence[A]], max_batch: int, quiet: float) -> None:
        self._work = work
        self._max_batch = max_batch
        self._quiet = quiet
        self._waiting: list[tuple[R, asyncio.Future[A]]] = []
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._serving: asyncio.Task[None] | None = None
        self._open = asyncio.Event()
        self._open.set()

    async def submit(self, request: R) -> A:
        """The answer to one request. An exception of `work` is raised for every request of the batch."""
        loop = asyncio.get_running_loop()
        if self._serving is None:
            self._serving = loop.create_task(self._serve())
        answer: asyncio.Future[A] = loop.create_future()
        self._waiting.append((request, answer))
        self._arrival.set()
        return await answer

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function in the same thread, that is, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def pause(self) -> None:
        """Let no further batch of requests start, and return when the running one has ended. Requests wait."""
        self._open.clear()
        await self.run(lambda: None)

    def resume(self) -> None:
        """Let batches start again."""
        self._open.set()

    async def _serve(self) -> None:
        while True:
            batch = await self._collect()
            await self._open.wait()
            try:
                answers = await self.run(self._work, [request for request, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():  # the request may have been cancelled
                        future.set_result(answer)
            except Exception as error:  # passed to the batch's requests; the next batch may succeed
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
