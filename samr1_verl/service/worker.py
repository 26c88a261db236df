"""The one thread in which a segmenter computes, fed by priority."""

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
    """What goes first: a finished answer waits for its decode, an encode ahead of time has time."""

    STOP = 0
    DECODE = 1
    ENCODE = 2
    AHEAD = 3


class Worker:
    """Runs what it is given, one after the other; equal priorities in the order in which they came."""

    def __init__(self, name: str) -> None:
        self._queue: queue.PriorityQueue[tuple[Priority, int, Callable[[], None]]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._started: float | None = None  # of the running computation, on the monotonic clock
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, priority: Priority, compute: Callable[[], None]) -> None:
        """Queue a computation, which must handle its own exceptions. Raises RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        self._queue.put((priority, next(self._order), compute))

    def __len__(self) -> int:
        """Computations that wait."""
        return self._queue.qsize()

    def busy_seconds(self) -> float:
        """How long the running computation has taken so far; 0 between two; infinite when the thread is gone."""
        if not self._thread.is_alive():
            return float("inf")
        started = self._started
        return 0.0 if started is None else time.monotonic() - started

    def close(self) -> None:
        """Finish the running computation and drop the waiting ones."""
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
            except Exception:  # a defect of the engine: it must not end the thread and hang every later request
                _log.exception("a computation of the segmenter's thread failed")
            self._started = None
