"""The single thread in which a segmenter computes, with a priority queue in front of it."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from enum import IntEnum

_log = logging.getLogger(__name__)


class Priority(IntEnum):
    """The order of computations: the smallest number runs first."""

    STOP = 0
    DECODE = 1  # a finished rollout waits for it
    ENCODE = 2  # a request waits for it, and for its decode afterwards
    AHEAD = 3  # an encode ahead of time: no request waits for it yet


class Worker:
    """Runs computations one after the other, by priority; equal priorities in the order of their submission."""

    def __init__(self, name: str) -> None:
        self._queue: queue.PriorityQueue[tuple[Priority, int, Callable[[], None]]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._started: float | None = None  # start of the running computation, on the monotonic clock
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, priority: Priority, compute: Callable[[], None]) -> None:
        """Queue a computation, which must handle its own exceptions. Raises RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        self._queue.put((priority, next(self._order), compute))

    def __len__(self) -> int:
        """Number of computations that wait."""
        return self._queue.qsize()

    def busy_seconds(self) -> float:
        """Seconds since the running computation started; 0: idle; infinite: the thread has ended."""
        if not self._thread.is_alive():
            return float("inf")
        started = self._started
        return 0.0 if started is None else time.monotonic() - started

    def close(self) -> None:
        """Wait for the running computation and drop the waiting ones."""
        self._closed = True
        self._queue.put((Priority.STOP, next(self._order), lambda: None))
        self._thread.join()

    def _run(self) -> None:
        while True:
            priority, _, compute = self._queue.get()
            if priority is Priority.STOP:
                return
            self._started = time.monotonic()
            try:
                compute()
            except Exception:  # a bug of the engine: it must not end the thread, which would block all later requests
                _log.exception("a computation of the segmenter's thread failed")
            self._started = None
