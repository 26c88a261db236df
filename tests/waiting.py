"""Waiting for an event in tests, and clocks that a test puts forward. A guard ends a hang, and no slow machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

GUARD_S = 300.0


def wait_until(condition: Callable[[], Any]) -> None:
    """Return when the condition holds."""
    end = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


async def until(condition: Callable[[], Any]) -> None:
    """`wait_until` beside the other tasks of the event loop."""
    end = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.001)


class LoopClock:
    """The clock of the running event loop, which has the timeouts of its tasks, put forward by a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop, self._ahead_s = asyncio.get_running_loop(), 0.0
        of_the_loop = loop.time
        monkeypatch.setattr(loop, "time", lambda: of_the_loop() + self._ahead_s)

    def put_forward(self, seconds: float) -> None:
        self._ahead_s += seconds
