"""The client of one or several `samr1 serve` processes.

All requests for an image go to the same address, chosen by rendezvous hashing of the image's digest. So a group and
every later epoch use the same cached embedding. An address that failed is tried last for COOL_S seconds; meanwhile the
next address in the image's order gets its requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from samr1_verl.config import HttpServiceConfig
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import MaskError, decode_rle
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters.base import Prediction, SegmenterError
from samr1_verl.service.retry import HttpPool, TransientError, ask_service
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
Answer = TypeVar("Answer", bound=BaseModel)


class HttpClient:
    """Implements `client.Client` over HTTP.

    Args:
        config: the addresses.
        timeout_s: maximum seconds per request, all attempts included.
        attempt_s: maximum seconds per attempt.

    The bearer token is read from the environment variable SAMR1_TOKEN; unset: no token.
    """

    def __init__(self, config: HttpServiceConfig, timeout_s: float, attempt_s: float) -> None:
        self._addresses, self._timeout_s, self._attempt_s = config.addresses, timeout_s, attempt_s
        self._down: dict[str, float] = {}  # address to the time until which it is tried last
        self._by_digest: set[str] = set()  # addresses whose roots do not contain our images
        token = os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._pool = HttpPool(headers, httpx.Timeout(attempt_s, connect=CONNECT_S), connections=None, idle=64)

    async def segment(self, image: str | Path, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]:
        """As `engine.Engine.segment`. Raises ServiceError when no address answers in time."""
        if not prompts:
            return []
        answer = await self._persist("segment", image, sha256, _request(sha256, prompts, masks=True), SegmentAnswer)
        predictions = answer.predictions or []
        if len(predictions) != len(prompts):
            raise SegmenterError(f"{image}: the service returned {len(predictions)} masks for {len(prompts)} prompts")
        return [Prediction(decode_rle(wire.mask, answer.size), wire.score) for wire in predictions]

    async def overlap(self, image: str | Path, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth) -> Overlap:
        """As `engine.Engine.overlap`. Raises ServiceError when no address answers in time."""
        answer = await self._persist("segment", image, sha256, _request(sha256, prompts, truth=truth), SegmentAnswer)
        if answer.overlap is None:
            raise SegmenterError(f"{image}: the service's answer has no overlap")
        wire = answer.overlap
        return Overlap(PixelCounts(wire.intersection, wire.union, wire.ignored, wire.ignored_predicted), wire.score)

    async def prefetch(self, image: str | Path, sha256: str) -> None:
        """As `engine.Engine.prefetch`. Raises ServiceError when no address answers in time."""
        request = PrefetchRequest(image=_image(sha256))
        await self._persist("prefetch", image, sha256, request, Accepted)

    async def _persist(
        self, endpoint: str, image: str | Path, sha256: str, request: BaseModel, kind: type[Answer]
    ) -> Answer:
        async def attempt() -> Answer:
            address = self._order(sha256)[0]
            try:
                answer = await self._ask(address, endpoint, Path(image), sha256, request, kind)
            except (TransientError, asyncio.CancelledError):  # cancelled: the attempt took longer than attempt_s
                self._down[address] = time.monotonic() + COOL_S
                raise
            self._down.pop(address, None)
            return answer

        return await ask_service(attempt, self._timeout_s, self._attempt_s, str(image))

    def _order(self, sha256: str) -> list[str]:
        """The addresses in the image's order, those that failed recently last."""
        now = time.monotonic()
        weight = {address: hashlib.sha256(f"{address} {sha256}".encode()).digest() for address in self._addresses}
        cooling = {address: max(self._down.get(address, now) - now, 0.0) for address in self._addresses}
        return sorted(self._addresses, key=lambda address: (cooling[address], weight[address]))

    async def _ask(
        self, address: str, endpoint: str, image: Path, sha256: str, request: BaseModel, kind: type[Answer]
    ) -> Answer:
        by_path = {**request.model_dump(mode="json"), "image": {"sha256": sha256, "path": str(image.absolute())}}
        by_digest = {**by_path, "image": {"sha256": sha256}}
        url = f"{address}/v1/{endpoint}"
        outcome: Answer | Problem
        outcome = await self._send("POST", url, kind, json=by_digest if address in self._by_digest else by_path)
        if isinstance(outcome, Problem) and outcome.code == "outside_roots":
            self._by_digest.add(address)
            outcome = await self._send("POST", url, kind, json=by_digest)
        if isinstance(outcome, Problem) and outcome.code == "unknown_image":
            uploaded = await self._upload(address, image, sha256)
            outcome = uploaded if isinstance(uploaded, Problem) else await self._send("POST", url, kind, json=by_digest)
        if isinstance(outcome, Problem):
            raise _exception(f"{image}: {outcome.message}", outcome)
        return outcome

    async def _upload(self, address: str, image: Path, sha256: str) -> ImageAnswer | Problem:
        try:
            content = await asyncio.to_thread(image.read_bytes)
        except OSError as error:
            raise ImageError(f"{image}: neither the service nor this process can read it ({error})") from error
        return await self._send("PUT", f"{address}/v1/images/{sha256}", ImageAnswer, content=content)

    async def _send(self, method: str, url: str, kind: type[Answer], **body: Any) -> Answer | Problem:
        """The answer, or the server's refusal. Raises TransientError for a fault that may pass."""
        try:
            client = await self._pool.client()
            response = await client.request(method, url, **body)
        except httpx.HTTPError as error:
            raise TransientError(f"{url}: {type(error).__name__} {error}") from error
        try:
            if response.is_success:
                return kind.model_validate_json(response.content)
            problem = ErrorAnswer.model_validate_json(response.content).error
        except ValidationError as error:
            raise TransientError(
                f"{url}: status {response.status_code} with {response.content[:100]!r}, not an answer of samr1 serve"
            ) from error
        if response.status_code >= 500:
            raise TransientError(f"{url}: {problem.message}")
        return problem


def _image(sha256: str) -> ImageRef:
    try:
        return ImageRef(sha256=sha256)
    except ValidationError as error:
        raise ImageError(f"the row's SHA-256 is {sha256!r}, expected 64 hexadecimal digits") from error


def _request(sha256: str, prompts: Sequence[Prompt], **fields: Any) -> SegmentRequest:
    image = _image(sha256)
    try:
        return SegmentRequest(image=image, prompts=list(map(WirePrompt.of, prompts)), **fields)
    except ValidationError as error:
        raise SegmenterError(f"the service does not accept the prompts: {error}") from error


def _exception(message: str, problem: Problem) -> Exception:
    """The exception that the embedded engine raises for the same fault."""
    kinds: dict[str, type[Exception]] = {"image": ImageError, "truth": MaskError}
    return kinds.get(problem.code, SegmenterError)(message)
