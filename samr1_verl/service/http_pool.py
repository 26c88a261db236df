"""HTTP connections to servers that are not trusted, and the reading of their answers.

An answer is read as it comes, up to a limit that follows from the request. Compressed answers are refused, because a
few bytes of them become many; the client asks for none. Redirects are not followed, and cookies are not kept. httpcore
bounds the headers to 100 kB. The caller bounds the time, for headers and body together.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from weakref import WeakKeyDictionary

import certifi
import httpx

from samr1_verl.service.retry import TransientError

AUTHORITIES = "SSL_CERT_FILE"  # environment variable: the authorities whose certificates are trusted, as for OpenSSL
REFUSAL_BYTES = 65_536  # of an answer that is no success; a longer one is cut there


@dataclass(frozen=True)
class Reply:
    """An answer: its status, and its body as bytes."""

    status: int
    content: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def excerpt(self, length: int = 300) -> str:
        """The first characters of the body, for a message."""
        return self.content[: 4 * length].decode(errors="replace")[:length]


def open_client(headers: Mapping[str, str], timeout: httpx.Timeout, limits: httpx.Limits) -> httpx.AsyncClient:
    """A client that asks for uncompressed answers, keeps no cookies and uses no proxy.

    Args:
        headers: of every request.
        timeout: seconds per step; the caller bounds their sum.
        limits: of the connections.
    """
    return httpx.AsyncClient(
        headers={**headers, "Accept-Encoding": "identity"},
        timeout=timeout,
        limits=limits,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # else every answer could add one
        trust_env=False,  # a proxy of the environment is for the internet, not for the next rack
        verify=ssl.create_default_context(cafile=os.environ.get(AUTHORITIES) or certifi.where()),
    )


async def read(client: httpx.AsyncClient, method: str, url: str, limit: int, **body: Any) -> Reply:
    """The answer to a request.

    Args:
        limit: maximum number of bytes of a successful answer.
        body: as httpx takes it: `json` or `content`.

    Raises:
        TransientError: the server does not answer, or its answer is compressed or longer than `limit`.
    """
    content = bytearray()
    try:
        async with client.stream(method, url, **body) as response:
            if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise TransientError(f"{url}: an answer with Content-Encoding {encoding[:50]!r}, expected none")
            most = limit if response.is_success else REFUSAL_BYTES
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > most:
                    break
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TransientError(f"{url}: {type(error).__name__} {error}") from error
    if response.is_success and len(content) > limit:
        raise TransientError(f"{url}: an answer of more than {limit} bytes, the limit for this request")
    return Reply(response.status_code, bytes(content[:most]))


def fetch(url: str, headers: Mapping[str, str], limit: int, seconds: float) -> Reply:
    """`read` of a GET from code outside an event loop, in at most `seconds`. Raises TransientError."""

    async def once() -> Reply:
        async with open_client(headers, httpx.Timeout(seconds), httpx.Limits()) as client:
            return await asyncio.wait_for(read(client, "GET", url, limit), seconds)

    try:
        with ThreadPoolExecutor(1) as pool:  # a thread of its own: an event loop may run in the caller's
            return pool.submit(lambda: asyncio.run(once())).result()
    except asyncio.TimeoutError as error:
        raise TransientError(f"{url}: no answer in {seconds:g} s") from error


class HttpPool:
    """HTTP clients that keep their connections open: one client per event loop, since connections belong to a loop.

    Args:
        headers: headers of every request.
        timeout: timeouts of httpx.
        connections: maximum number of open connections per client; None: no maximum.
        idle: maximum number of idle connections that stay open.
    """

    def __init__(self, headers: Mapping[str, str], timeout: httpx.Timeout, connections: int | None, idle: int) -> None:
        self._headers, self._timeout, self._connections, self._idle = dict(headers), timeout, connections, idle
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Any, httpx.AsyncClient]] = WeakKeyDictionary()

    async def client(self) -> httpx.AsyncClient:
        """The client of the running event loop, which closes its connections when the loop ends."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            opened = self._opened()
            # The generator is kept as long as the loop: the end of a loop closes its asynchronous generators.
            self._clients[loop] = opened, await anext(opened)
        return self._clients[loop][1]

    async def _opened(self) -> AsyncGenerator[httpx.AsyncClient, None]:
        limits = httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._idle)
        async with open_client(self._headers, self._timeout, limits) as client:
            yield client
