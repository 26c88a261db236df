"""Bounded retries of transient faults, for the service and for policies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_never,
    wait_random_exponential,
)

from samr1_verl.segmenters.base import SegmenterError

T = TypeVar("T")


class ServiceError(SegmenterError):
    """The service did not answer in time, and all attempts failed."""


class TransientError(Exception):
    """A fault that may pass, so the request is tried again."""


class ExhaustedError(Exception):
    """All attempts failed. `attempts` is their number, `fault` the message of the last one."""

    def __init__(self, attempts: int, fault: str) -> None:
        super().__init__(f"{attempts} attempts, the last fault: {fault}")
        self.attempts, self.fault = attempts, fault


@dataclass(frozen=True)
class Patience:
    """The limits of the attempts at one request.

    Pauses between attempts grow exponentially and have a random part, so that requests that failed together are not
    repeated at the same moment.
    """

    attempt_s: float  # maximum seconds per attempt
    timeout_s: float = float("inf")  # maximum seconds of all attempts and pauses together
    attempts: int | None = None  # maximum number of attempts; None: no maximum
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0


async def persist(attempt: Callable[[], Awaitable[T]], patience: Patience) -> T:
    """Call `attempt` until it succeeds, and return its result. A TransientError or a timeout leads to another attempt.

    Raises:
        ExhaustedError: no attempt succeeded within the limits. Other exceptions of `attempt` are passed on.
    """
    deadline = time.monotonic() + patience.timeout_s
    backoff = wait_random_exponential(multiplier=patience.first_pause_s, max=patience.longest_pause_s)
    by_time = stop_never if patience.timeout_s == float("inf") else stop_after_delay(patience.timeout_s)
    by_number = stop_never if patience.attempts is None else stop_after_attempt(patience.attempts)
    retrying = AsyncRetrying(
        stop=lambda state: by_time(state) or by_number(state),
        wait=lambda state: min(backoff(state), max(0.0, deadline - time.monotonic())),
        retry=retry_if_exception_type((TransientError, asyncio.TimeoutError)),
    )
    told = ""  # the last fault that says more than that the time was over: the last attempt may be cut short
    try:
        async for trial in retrying:
            with trial:
                left = max(0.01, deadline - time.monotonic())
                try:
                    return await asyncio.wait_for(attempt(), min(patience.attempt_s, left))
                except TransientError as error:
                    told = str(error)
                    raise
    except RetryError as error:
        last = error.last_attempt.exception()
        fault = str(last)
        if isinstance(last, asyncio.TimeoutError):
            fault = f"no answer in {patience.attempt_s:g} s" + (f"; before it: {told}" if told else "")
        raise ExhaustedError(error.last_attempt.attempt_number, fault) from last
    raise AssertionError("tenacity ends with a result or a RetryError")


async def ask_service(attempt: Callable[[], Awaitable[T]], timeout_s: float, attempt_s: float, image: str) -> T:
    """`persist` for a request to the segmenter's service.

    Args:
        timeout_s: maximum seconds of all attempts together.
        attempt_s: maximum seconds per attempt.
        image: path of the image, for the message.

    Raises:
        ServiceError: no attempt succeeded.
    """
    try:
        return await persist(attempt, Patience(attempt_s, timeout_s))
    except ExhaustedError as error:
        raise ServiceError(
            "service_not_answering",
            image,
            f"the segmenter's service did not answer in {timeout_s:g} s and {error.attempts} attempts; the last fault: "
            f"{error.fault}. Such a fault never becomes a score. Check that the service runs, or raise "
            "samr1.segmenter.service.timeout_s",
        ) from error
