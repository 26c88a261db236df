"""Bounded retries of faults that may pass, and a pool of HTTP connections, for the service and for policies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

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

if TYPE_CHECKING:
    import httpx  # not needed by the Ray client

T = TypeVar("T")


class ServiceError(SegmenterError):
    """The service did not answer in time, however often it was asked."""


class TransientError(Exception):
    """A fault that another attempt may not meet."""


class ExhaustedError(Exception):
    """No attempt succeeded: `attempts` of them, and the `fault` of the last one in words."""

    def __init__(self, attempts: int, fault: str) -> None:
        super().__init__(f"{attempts} attempts, the last fault: {fault}")
        self.attempts, self.fault = attempts, fault


@dataclass(frozen=True)
class Patience:
    """Bounds of the attempts at one request, in seconds.

    `attempt_s` bounds one attempt; `timeout_s` all attempts and the pauses between them; `attempts` their number.
    Pauses grow up to `longest_pause_s` and are jittered, so that the rollouts that met the same fault do not come back
    at the same moment.
    """

    attempt_s: float
    timeout_s: float = float("inf")
    attempts: int | None = None
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0


async def persist(attempt: Callable[[], Awaitable[T]], patience: Patience) -> T:
    """The first success of `attempt`, which raises TransientError for a fault that is worth another try.

    Raises:
        ExhaustedError: no attempt succeeded within the bounds. Other exceptions of `attempt` are passed on.
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
    try:
        async for trial in retrying:
            with trial:
                left = max(0.01, deadline - time.monotonic())
                return await asyncio.wait_for(attempt(), min(patience.attempt_s, left))
    except RetryError as error:
        last = error.last_attempt.exception()
        fault = f"no answer in {patience.attempt_s:g} s" if isinstance(last, asyncio.TimeoutError) else str(last)
        raise ExhaustedError(error.last_attempt.attempt_number, fault) from last
    raise AssertionError("tenacity ends by a result or a RetryError")


async def ask_service(attempt: Callable[[], Awaitable[T]], timeout_s: float, attempt_s: float, image: str) -> T:
    """`persist` for a request to the segmenter's service. Raises ServiceError, which names the image."""
    try:
        return await persist(attempt, Patience(attempt_s, timeout_s))
    except ExhaustedError as error:
        raise ServiceError(
            f"{image}: the segmenter's service did not answer in {timeout_s:g} s and {error.attempts} attempts; the "
            f"last fault: {error.fault}. It is no score: see that the service runs, or raise "
            "samr1.segmenter.service.timeout_s"
        ) from error


class HttpPool:
    """HTTP clients with kept connections, one per event loop: a pool belongs to its loop, a process may have several.

    Args:
        headers: of every request.
        timeout: of httpx.
        connections: maximum number of connections at a time, or None; `idle` of them are kept.
    """

    def __init__(self, headers: Mapping[str, str], timeout: httpx.Timeout, connections: int | None, idle: int) -> None:
        self._headers, self._timeout, self._connections, self._idle = dict(headers), timeout, connections, idle
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    def client(self) -> httpx.AsyncClient:
        """The client of the running event loop."""
        import httpx

        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = httpx.AsyncClient(
                headers=self._headers,
                timeout=self._timeout,
                limits=httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._idle),
                trust_env=False,  # a proxy of the environment is for the internet, not for the next rack
            )
        return self._clients[loop]
