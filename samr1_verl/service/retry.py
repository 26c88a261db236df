"""Bounded retries of what may pass: with jittered backoff, within a total time, and one clear exception at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_delay, wait_random_exponential

from samr1_verl.segmenters.base import SegmenterError

T = TypeVar("T")


class ServiceError(SegmenterError):
    """The service did not answer in time, however often it was asked."""


class TransientError(Exception):
    """A fault that another attempt may not meet."""


async def persist(attempt: Callable[[], Awaitable[T]], timeout_s: float, attempt_s: float, what: str) -> T:
    """The first success of `attempt`.

    Args:
        attempt: raises TransientError for what is worth another try; anything else is passed on.
        timeout_s: of all attempts and the pauses between them.
        attempt_s: of one attempt.
        what: names the request in the error.

    Raises:
        ServiceError: no attempt succeeded in time; it quotes the last fault.
    """
    deadline = time.monotonic() + timeout_s
    retrying = AsyncRetrying(
        stop=stop_after_delay(timeout_s),
        # Jittered, so that the rollouts that met the same fault do not come back at the same moment.
        wait=lambda state: min(_backoff(state), max(0.0, deadline - time.monotonic())),
        retry=retry_if_exception_type((TransientError, asyncio.TimeoutError)),
    )
    try:
        async for one in retrying:
            with one:
                left = max(0.01, deadline - time.monotonic())
                return await asyncio.wait_for(attempt(), min(attempt_s, left))
    except RetryError as error:
        last = error.last_attempt.exception()
        fault = f"no answer in {attempt_s:g} s" if isinstance(last, asyncio.TimeoutError) else str(last)
        attempts = error.last_attempt.attempt_number
        raise ServiceError(
            f"{what}: the segmenter's service did not answer in {timeout_s:g} s and {attempts} attempts; the last "
            f"fault: {fault}. It is no score: see that the service runs, or raise samr1.service.timeout_s"
        ) from last
    raise AssertionError("tenacity ends by a result or a RetryError")


_backoff = wait_random_exponential(multiplier=0.1, max=5.0)
