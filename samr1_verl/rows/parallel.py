"""Parallel map over a stream on all cores, with results in order and bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 8  # items sent to a worker together
AHEAD = 4  # maximum number of unfinished chunks per worker


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Generator[Result, None, None]:
    """Results of `function` per item, in the order of the items.

    At most AHEAD * CHUNK items per worker are taken from the stream before their results are consumed. An exception of
    `function` is raised here, in place of the item's result.

    Args:
        function: picklable, as are items and results.
        workers: number of processes; None: one per core; 1: this process alone.
    """
    workers = workers or cores()
    stream = iter(items)
    if workers == 1:
        yield from map(function, stream)
        return
    # spawn: a fork of a process with threads (a progress bar, pyarrow) may inherit a lock that is never released
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
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


def _start_worker() -> None:
    """Ignore Ctrl-C, and end with the starting process.

    Ctrl-C reaches every process of a terminal, and the starting process ends its workers. Where that process was
    killed, nothing else ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _apply(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [function(item) for item in chunk]
