"""Seconds of work that overlaps, such as concurrent requests to a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SharedClock:
    """Divides passing time among the tasks at work: their seconds sum up to the time in which any of them worked.

    Args:
        now: seconds since any fixed moment.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._last = now, now()
        self._at_work: list[Task] = []

    @contextmanager
    def task(self) -> Iterator[Task]:
        """A task that works while the block runs."""
        task = Task()
        self._share()
        self._at_work.append(task)
        try:
            yield task
        finally:
            self._share()
            self._at_work.remove(task)

    def _share(self) -> None:
        """Give the time since the last change to the tasks that worked."""
        now = self._now()
        for task in self._at_work:
            task.seconds += (now - self._last) / len(self._at_work)
        self._last = now


class Task:
    """A piece of work and its share of the time that passed."""

    seconds = 0.0
