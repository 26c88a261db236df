"""A function over a stream on all cores: results in order, memory independent of the stream's length."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 8  # items sent to a worker together
AHEAD = 4  # chunks in flight for each worker


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Generator[Result, None, None]:
    """Results of `function` for each item, in order, from `workers` processes (default: one per core; 1: this process).

    `function`, items and results must be picklable. At most AHEAD * CHUNK items per worker are taken from the stream
    before their results are consumed. An exception of `function` is raised here, in the place of its item.
    """
    workers = workers or cores()
    stream = iter(items)
    if workers == 1:
        yield from map(function, stream)
        return
    # spawn: a fork of a process with threads (a progress bar, pyarrow) may inherit a lock that is never released
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_leave_interrupts)
    pending: deque[Future[list[Result]]] = deque()
    try:
        while True:
            while len(pending) < AHEAD * workers and (chunk := list(islice(stream, CHUNK))):
                pending.append(pool.submit(_apply, function, chunk))
            if not pending:
                break
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Ignore Ctrl-C in a worker. It reaches every process of a terminal, and the starting process ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _apply(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [function(item) for item in chunk]
