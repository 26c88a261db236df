"""The client of one or several `samr1 serve` processes.

All requests for an image go to the same address, chosen by rendezvous hashing of the image's digest. So a group and
every later epoch use the same cached embedding. An address that failed is tried last for COOL_S seconds; meanwhile the
next address in the image's order gets its requests.

The servers are not trusted. An answer is read up to a limit that follows from the request, and one that no segmenter
can give is a fault of its address, as is an answer of another segmenter.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
from cachetools import LRUCache, cached
from pydantic import BaseModel, ValidationError

from samr1_verl.config import HttpServiceConfig
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.images import ImageError, ImageFile
from samr1_verl.geometry.masks import MaskError
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters.base import Prediction, SegmenterError
from samr1_verl.service.answers import WrongAnswerError, decoded, sound_overlap, sound_predictions
from samr1_verl.service.http_pool import HttpPool, read
from samr1_verl.service.retry import TransientError, ask_service
from samr1_verl.service.source import read_file, size_of
from samr1_verl.service.wire import (
    TOKEN_VARIABLE,
    Accepted,
    ErrorAnswer,
    ImageAnswer,
    ImageRef,
    PrefetchRequest,
    Problem,
    SegmentAnswer,
    SegmentRequest,
    WirePrompt,
)

COOL_S = 10.0  # seconds in which an address that failed is tried last
CONNECT_S = 5.0  # maximum time to open a connection
ANSWER_BYTES = 65_536  # maximum size of an answer without masks, and of the rest of one with masks
MASKS_BYTES = 64_000_000  # maximum size of an answer's masks
_PASSING = (408, 425, 429)  # statuses that are retried, in addition to all from 500 up

_log = logging.getLogger(__name__)
_size_of = cached(LRUCache(10_000), lock=threading.Lock())(size_of)
Answer = TypeVar("Answer", SegmentAnswer, ImageAnswer, Accepted)
Result = TypeVar("Result")


class _EvictedError(TransientError):
    """The server dropped an upload before it was used. Another attempt uploads it again."""


class _Call(NamedTuple):
    """A request about an image."""

    endpoint: str
    image: Path
    sha256: str
    request: BaseModel
    limit: int  # maximum number of bytes of the answer


class HttpClient:
    """Implements `client.Client` over HTTP.

    Args:
        config: the addresses, and the segmenter behind them.
        timeout_s: maximum seconds per request, all attempts included.
        attempt_s: maximum seconds per attempt.

    The bearer token is read from the environment variable SAMR1_TOKEN; unset: no token.
    """

    def __init__(self, config: HttpServiceConfig, timeout_s: float, attempt_s: float) -> None:
        self._addresses, self._timeout_s, self._attempt_s = config.addresses, timeout_s, attempt_s
        self._identity, self._lock = config.identity, threading.Lock()  # None: that of the first sound answer
        self._down: dict[str, float] = {}  # address to the time until which it is tried last
        self._by_digest: set[str] = set()  # addresses whose roots do not contain our images
        token = os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._pool = HttpPool(headers, httpx.Timeout(attempt_s, connect=CONNECT_S), connections=None, idle=64)

    async def segment(self, image: str | Path, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]:
        """As `engine.Engine.segment`. Raises ServiceError when no address gives a sound answer in time."""
        if not prompts:
            return []
        request = _request(sha256, prompts, masks=True)
        size = await asyncio.to_thread(_size_of, Path(image), sha256)
        masks = MASKS_BYTES if size is None else min(MASKS_BYTES, len(prompts) * size[0] * size[1])

        def predictions(answer: SegmentAnswer) -> list[Prediction]:
            found = decoded(answer.predictions or [], answer.size, size, len(prompts))
            return sound_predictions(found, len(prompts))

        async def accept(answer: SegmentAnswer) -> list[Prediction]:
            return await asyncio.to_thread(predictions, answer)  # a mask may have a million runs

        call = _Call("segment", Path(image), sha256, request, ANSWER_BYTES + masks)
        return await self._persist(call, SegmentAnswer, accept)

    async def overlap(self, image: str | Path, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth) -> Overlap:
        """As `engine.Engine.overlap`. Raises ServiceError when no address gives a sound answer in time."""

        async def accept(answer: SegmentAnswer) -> Overlap:
            wire = answer.overlap
            if wire is None or answer.size != truth.size:
                raise WrongAnswerError(f"the answer is {str(answer)[:200]}, expected an overlap of size {truth.size}")
            counts = PixelCounts(wire.intersection, wire.union, wire.ignored, wire.ignored_predicted)
            return sound_overlap(Overlap(counts, wire.score), truth)

        call = _Call("segment", Path(image), sha256, _request(sha256, prompts, truth=truth), ANSWER_BYTES)
        return await self._persist(call, SegmentAnswer, accept)

    async def prefetch(self, image: str | Path, sha256: str) -> None:
        """As `engine.Engine.prefetch`. Raises ServiceError when no address answers in time."""

        async def accept(_: Accepted) -> None:
            return None

        call = _Call("prefetch", Path(image), sha256, PrefetchRequest(image=_image(sha256)), ANSWER_BYTES)
        await self._persist(call, Accepted, accept)

    async def _persist(self, call: _Call, kind: type[Answer], accept: Callable[[Answer], Awaitable[Result]]) -> Result:
        """The result of `accept` for an answer. An answer that it refuses with TransientError leads to another one."""

        async def attempt() -> Result:
            address = self._order(call.sha256)[0]
            try:
                answer = await self._ask(address, call, kind)
                try:
                    result = await accept(answer)
                    self._check_identity(answer.segmenter)
                except WrongAnswerError as error:
                    _log.warning("%s, %s: %s", address, call.image, error)
                    raise TransientError(f"{address}: {error}") from error
            except _EvictedError:
                raise
            except (TransientError, asyncio.CancelledError):  # cancelled: the attempt took longer than attempt_s
                self._down[address] = time.monotonic() + COOL_S
                raise
            self._down.pop(address, None)
            return result

        return await ask_service(attempt, self._timeout_s, self._attempt_s, str(call.image))

    def _check_identity(self, identity: str) -> None:
        """Raise WrongAnswerError where an answer comes from another segmenter than the first one."""
        with self._lock:  # event loops of several threads may share a client
            self._identity = self._identity or identity
        if identity != self._identity:
            raise WrongAnswerError(
                f"its segmenter is {identity}, the run's is {self._identity}: scores of two segmenters must not be "
                "mixed. Start every server with the same weights and options, or take this address out of "
                "samr1.segmenter.service.http.addresses"
            )

    def _order(self, sha256: str) -> list[str]:
        """The addresses in the image's order, those that failed recently last."""
        now = time.monotonic()
        weight = {address: hashlib.sha256(f"{address} {sha256}".encode()).digest() for address in self._addresses}
        cooling = {address: max(self._down.get(address, now) - now, 0.0) for address in self._addresses}
        return sorted(self._addresses, key=lambda address: (cooling[address], weight[address]))

    async def _ask(self, address: str, call: _Call, kind: type[Answer]) -> Answer:
        image, sha256 = call.image, call.sha256
        by_path = {**call.request.model_dump(mode="json"), "image": {"sha256": sha256, "path": str(image.absolute())}}
        by_digest = {**by_path, "image": {"sha256": sha256}}
        url = f"{address}/v1/{call.endpoint}"

        async def send(body: dict[str, Any]) -> Answer | Problem:
            return await self._send("POST", url, kind, call.limit, json=body)

        outcome = await send(by_digest if address in self._by_digest else by_path)
        if isinstance(outcome, Problem) and outcome.code == "outside_roots":
            self._by_digest.add(address)
            outcome = await send(by_digest)
        if isinstance(outcome, Problem) and outcome.code == "unknown_image":
            uploaded = await self._upload(address, image, sha256)
            outcome = uploaded if isinstance(uploaded, Problem) else await send(by_digest)
            if isinstance(outcome, Problem) and outcome.code == "unknown_image":
                raise _EvictedError(f"{url}: {outcome.message[:500]}")
        if isinstance(outcome, Problem):
            raise _exception(image, outcome)
        return outcome

    async def _upload(self, address: str, image: Path, sha256: str) -> ImageAnswer | Problem:
        """Upload the row's image, and no other file: its digest is checked first."""
        try:
            file: ImageFile = await asyncio.to_thread(read_file, image, sha256)
        except ImageError as error:
            raise ImageError(
                "image_not_uploaded", f"{image}", f"the service cannot read it, and it cannot be uploaded: {error}"
            ) from error
        except OSError as error:  # such as too many open files
            raise TransientError(f"{image}: {error}") from error
        url = f"{address}/v1/images/{sha256}"
        return await self._send("PUT", url, ImageAnswer, ANSWER_BYTES, content=file.content)

    async def _send(self, method: str, url: str, kind: type[Answer], limit: int, **body: Any) -> Answer | Problem:
        """The answer, or the server's refusal. Raises TransientError for a fault that may pass."""
        reply = await read(await self._pool.client(), method, url, limit, **body)
        try:
            if reply.is_success:
                return kind.model_validate_json(reply.content)
            problem = ErrorAnswer.model_validate_json(reply.content).error
        except ValidationError as error:
            raise TransientError(
                f"{url}: status {reply.status} with {reply.content[:100]!r}, not an answer of samr1 serve"
            ) from error
        if reply.status >= 500 or reply.status in _PASSING:
            raise TransientError(f"{url}: {problem.message[:500]}")
        return problem


def _image(sha256: str) -> ImageRef:
    try:
        return ImageRef(sha256=sha256)
    except ValidationError as error:
        raise ImageError(
            "malformed_digest", "the row's SHA-256", f"found {sha256!r}, expected 64 hexadecimal digits"
        ) from error


def _request(sha256: str, prompts: Sequence[Prompt], **fields: Any) -> SegmentRequest:
    image = _image(sha256)
    try:
        return SegmentRequest(image=image, prompts=list(map(WirePrompt.of, prompts)), **fields)
    except ValidationError as error:
        raise SegmenterError("bad_prompts", "the prompts", f"the service does not accept them: {error}") from error


def _exception(image: Path, problem: Problem) -> Exception:
    """The exception that the embedded engine raises for the same fault."""
    message = problem.message[:2000]
    if problem.code == "image":
        return ImageError("server_refuses_image", f"{image}", message)
    if problem.code == "truth":
        return MaskError("server_refuses_truth", f"{image}", message)
    return SegmenterError("server_refuses_request", f"{image}", message)
