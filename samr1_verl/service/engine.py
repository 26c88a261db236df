"""The engine: one segmenter, its embedding cache, and one thread that computes.

A request names an image by path and SHA-256. The first request for an image opens it, holds it against its digest and
encodes it; requests that come meanwhile wait for the same encode, later ones find the embedding. `prefetch` starts an
encode before there is a request. Prompts that wait for the same image are decoded together, equal ones once.
Computations run in the engine's own thread (worker.py), so the caller's event loop stays free. Requests may come from
any thread and loop.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from samr1_verl.config import SegmenterConfig
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import MaskError
from samr1_verl.geometry.overlap import Overlap, overlap_of
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters import load_segmenter
from samr1_verl.segmenters.base import Embedding, Prediction, Segmenter, SegmenterError
from samr1_verl.service.cache import FolderCache, halved, memory_cache, restored
from samr1_verl.service.counters import Counters
from samr1_verl.service.source import read_image
from samr1_verl.service.worker import Priority, Worker

_log = logging.getLogger(__name__)
# Requests whose masks, of the image's size, are held at once.
TOGETHER = 16


class UnknownImageError(ImageError):
    """A request that names an image by digest alone, and the engine does not have its embedding."""


@dataclass(eq=False)
class _Flight:
    """An encode that is queued or running."""

    image: Path | None
    priority: Priority
    future: Future[Embedding] = field(default_factory=Future)
    started: bool = False


@dataclass(eq=False)
class _Job:
    """A request whose embedding is there."""

    image: Path | None
    prompts: Sequence[Prompt]
    truth: GroundTruth | None  # None: the masks are wanted
    future: Future[Any] = field(default_factory=Future)


class Engine:
    """Serves one segmenter in this process.

    Args:
        segmenter: called from one thread only.
        cache_bytes: bound of the embeddings kept in memory.
        cache_dir: folder that keeps embeddings for later runs, or None.
        cache_dtype: float16 keeps float32 embeddings in half the bytes; what is decoded is then rounded to it.
        max_pixels: an image with more is refused before it is decoded; None: Pillow's own limit.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        cache_bytes: int,
        cache_dir: Path | None = None,
        cache_dtype: Literal["float32", "float16"] = "float32",
        max_pixels: int | None = None,
    ) -> None:
        self.identity = segmenter.identity
        self._segmenter, self._halve, self._max_pixels = segmenter, cache_dtype == "float16", max_pixels
        self._memory = memory_cache(cache_bytes)
        kept_as = segmenter.identity + ("-float16" if self._halve else "")
        self._folder = None if cache_dir is None else FolderCache(cache_dir, kept_as)
        self._flights: dict[str, _Flight] = {}
        self._jobs: dict[str, list[_Job]] = {}
        self._counters = Counters()
        self._lock = threading.Lock()  # guards the five above; held for no computation
        self._worker = Worker("segmenter")

    async def segment(self, image: str | Path | None, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]:
        """One mask for each prompt, in order, HxW bool in the original frame.

        Args:
            image: path of the file, or None: by its digest alone, where the embedding is kept.

        Raises:
            ImageError: the image is missing, unreadable, or not the file that the digest describes; UnknownImageError
                where it was named by a digest that is not kept.
            SegmenterError: the segmenter failed on a sound image.
        """
        return await self._ask(image, sha256, prompts, None)

    async def overlap(
        self, image: str | Path | None, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth
    ) -> Overlap:
        """The union of the prompts' masks against the union of the true masks, ignored pixels left out.

        Raises:
            ImageError, SegmenterError: as `segment`.
            MaskError: the truth does not decode, or its size is not the image's.
        """
        return await self._ask(image, sha256, prompts, truth)

    async def prefetch(self, image: str | Path | None, sha256: str) -> None:
        """Start to encode an image that requests will name, after everything that somebody waits for.

        Returns at once. An encode that fails is logged, and tried again by the request.
        """
        with self._lock:
            if sha256 not in self._memory and sha256 not in self._flights:
                self._fly(image, sha256, Priority.AHEAD)

    async def size(self, image: str | Path | None, sha256: str) -> tuple[int, int]:
        """(H, W) of an image, which is encoded for it and not counted. Raises ImageError, SegmenterError."""
        return (await self._embedding(image, sha256, counted=False)).size

    def counters(self) -> Counters:
        """What this engine did so far."""
        with self._lock:
            return replace(self._counters, cached_bytes=int(self._memory.currsize), queued=len(self._worker))

    def busy_seconds(self) -> float:
        """How long the running computation has taken so far; infinite when the engine cannot compute any more."""
        return self._worker.busy_seconds()

    def close(self) -> None:
        """Finish the running computation and cancel the waiting ones."""
        self._worker.close()
        with self._lock:
            waiting = [flight.future for flight in self._flights.values()]
            waiting += [job.future for jobs in self._jobs.values() for job in jobs]
        for future in waiting:
            future.cancel()

    async def _ask(
        self, image: str | Path | None, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth | None
    ) -> Any:
        embedding = await self._embedding(image, sha256)
        job = _Job(_path(image), prompts, truth)
        with self._lock:
            if sha256 not in self._jobs:
                self._worker.submit(Priority.DECODE, lambda: self._decode_waiting(sha256, embedding))
                self._jobs[sha256] = []
            self._jobs[sha256].append(job)
        return await asyncio.wrap_future(job.future)

    async def _embedding(self, image: str | Path | None, sha256: str, counted: bool = True) -> Embedding:
        started = time.perf_counter()
        with self._lock:
            if (cached := self._memory.get(sha256)) is not None:
                self._count(requests=counted, hits=counted)
                return cached
            self._count(requests=counted)
            flight = self._flights.get(sha256)
            if flight is None or (flight.image is None and image is not None and not flight.started):
                flight = self._fly(image, sha256, Priority.ENCODE)
            elif not flight.started and flight.priority is Priority.AHEAD:
                flight.priority = Priority.ENCODE
                self._worker.submit(Priority.ENCODE, lambda: self._land(sha256, flight))
        try:
            # Shielded: when one waiting request is cancelled, the others still get the embedding.
            return await asyncio.shield(asyncio.wrap_future(flight.future))
        finally:
            with self._lock:
                self._count(wait_seconds=counted * (time.perf_counter() - started))

    def _fly(self, image: str | Path | None, sha256: str, priority: Priority) -> _Flight:
        """Queue an encode. The lock is held."""
        flight = _Flight(_path(image), priority)
        self._worker.submit(priority, lambda: self._land(sha256, flight))
        self._flights[sha256] = flight
        return flight

    def _land(self, sha256: str, flight: _Flight) -> None:
        """Make a flight's embedding, once however often it was queued."""
        with self._lock:
            if flight.started:
                return
            flight.started = True
        try:
            embedding: Embedding | Exception = self._load_or_encode(flight.image, sha256)
        except Exception as error:
            if flight.priority is Priority.AHEAD:
                _log.warning("encode ahead of time: %s", error)
            embedding = error
        with self._lock:  # at once: a next request finds the embedding, or tries again
            if isinstance(embedding, Embedding) and embedding.nbytes <= self._memory.maxsize:
                self._memory[sha256] = embedding
            if self._flights.get(sha256) is flight:
                del self._flights[sha256]
        if isinstance(embedding, Embedding):
            flight.future.set_result(embedding)
        else:
            flight.future.set_exception(embedding)

    def _load_or_encode(self, image: Path | None, sha256: str) -> Embedding:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ImageError(f"{image}: the row's SHA-256 is {sha256!r}, expected 64 hexadecimal digits")
        if self._folder is not None and (kept := self._folder.get(sha256)) is not None:
            with self._lock:
                self._count(disk_hits=1)
            return kept
        if image is None:
            raise UnknownImageError(f"the image with SHA-256 {sha256} is not known here: send it, or its path")
        pixels = read_image(image, sha256, self._max_pixels)
        started = time.perf_counter()
        try:
            embedding = self._segmenter.encode(pixels)
        except ImageError as error:
            raise ImageError(f"{image}: {error}") from error
        except Exception as error:
            raise SegmenterError(f"{image}: {self.identity} failed to encode it: {error}") from error
        with self._lock:
            self._count(encodes=1, encode_seconds=time.perf_counter() - started)
        embedding = halved(embedding) if self._halve else embedding
        if self._folder is not None:
            self._folder.put(sha256, embedding)
        return embedding

    def _decode_waiting(self, sha256: str, embedding: Embedding) -> None:
        """Answer every request that waits for this image's decoder."""
        with self._lock:
            waiting = self._jobs.pop(sha256)
        jobs = [job for job in waiting if job.future.set_running_or_notify_cancel()]
        embedding = restored(embedding)
        while jobs:
            some, jobs = jobs[:TOGETHER], jobs[TOGETHER:]
            self._answer(some, embedding)

    def _answer(self, jobs: list[_Job], embedding: Embedding) -> None:
        started = time.perf_counter()
        prompts = list(dict.fromkeys(prompt for job in jobs for prompt in job.prompts))
        try:
            found = dict(zip(prompts, self._segmenter.decode(embedding, prompts), strict=True))
        except Exception as error:
            if len(jobs) > 1:  # so that one request's prompts do not fail another's
                for job in jobs:
                    self._answer([job], embedding)
                return
            what = f"{jobs[0].image or 'the image'}: {self.identity} failed to decode {prompts}: {error}"
            jobs[0].future.set_exception(SegmenterError(what))
            return
        with self._lock:
            self._count(decodes=len(prompts), decode_seconds=time.perf_counter() - started)
        for job in jobs:
            predictions = [found[prompt] for prompt in job.prompts]
            try:
                if job.truth is None:
                    job.future.set_result(predictions)
                else:
                    job.future.set_result(_overlap(job, predictions, embedding.size))
            except Exception as error:
                job.future.set_exception(error)

    def _count(self, **more: float) -> None:
        now = {name: getattr(self._counters, name) + number for name, number in more.items()}
        self._counters = replace(self._counters, **now)


def engine_of(config: SegmenterConfig, max_pixels: int | None = None) -> Engine:
    """The engine that serves a segmenter in this process.

    Args:
        max_pixels: an image with more is refused before it is decoded; None: Pillow's own limit.

    Raises:
        ConfigError: the segmenter cannot be loaded.
    """
    service = config.service
    folder = None if service.cache_dir is None else Path(service.cache_dir)
    return Engine(load_segmenter(config), int(service.cache_gb * 1e9), folder, service.cache_dtype, max_pixels)


def _overlap(job: _Job, predictions: list[Prediction], size: tuple[int, int]) -> Overlap:
    """Raises MaskError, which names the image, where the truth does not decode or is for another size."""
    assert job.truth is not None
    try:
        job.truth.check_size(size)
        truth, ignore = job.truth.union_and_ignore()
    except MaskError as error:
        raise MaskError(f"{job.image or 'the image'}: {error}") from error
    return overlap_of([one.mask for one in predictions], [one.score for one in predictions], truth, ignore)


def _path(image: str | Path | None) -> Path | None:
    return None if image is None else Path(image)
