"""The engine: one segmenter, its embedding cache, and one thread that computes.

A request names an image by path and SHA-256. The first request for an image reads the file, checks its digest and
encodes it. Requests that arrive meanwhile wait for the same encode; later requests use the cached embedding.
`prefetch` starts an encode before the first request. Prompts that wait for the same image are decoded together, equal
prompts once. All computations run in the engine's own thread (worker.py), so the caller's event loop stays free.
Requests may come from any thread and any event loop.
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
from samr1_verl.service.place import place_of
from samr1_verl.service.source import read_image
from samr1_verl.service.worker import Priority, Worker

_log = logging.getLogger(__name__)
# Maximum number of requests that are decoded together: the masks of all of them, at the image's size, are in memory.
TOGETHER = 16


class UnknownImageError(ImageError):
    """An image that is named by its digest alone and whose embedding the engine does not have."""


@dataclass(eq=False)
class _Encode:
    """An encode that is queued or running; all requests for the image wait for its future."""

    image: Path | None
    priority: Priority
    future: Future[Embedding] = field(default_factory=Future)
    started: bool = False


@dataclass(eq=False)
class _Job:
    """A request that has its embedding and waits for the decoder."""

    image: Path | None
    prompts: Sequence[Prompt]
    truth: GroundTruth | None  # None: the result is the masks, else the overlap with the true masks
    future: Future[Any] = field(default_factory=Future)


class Engine:
    """Serves one segmenter in this process.

    Args:
        segmenter: called from one thread only.
        cache_bytes: maximum size of the embeddings kept in memory.
        cache_dir: folder that keeps embeddings for later runs; None: no folder.
        cache_dtype: float16 stores float32 embeddings in half the bytes, rounded to float16 precision.
        max_pixels: maximum number of pixels per image, checked before the file is decoded; None: Pillow's own limit.
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
        self._encodes: dict[str, _Encode] = {}  # by digest
        self._jobs: dict[str, list[_Job]] = {}  # by digest
        self._counters = Counters()
        self._lock = threading.Lock()  # guards cache, folder, encodes, jobs and counters; never held while computing
        self._worker = Worker("segmenter")

    async def segment(self, image: str | Path | None, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]:
        """One mask per prompt, in the order of the prompts: HxW bool in the original frame.

        Args:
            image: path of the file; None: the embedding is in the cache and is looked up by its digest.
            sha256: digest of the file's bytes, 64 lower-case hexadecimal digits.
            prompts: box and points in continuous XY pixels of the original frame.

        Raises:
            ImageError: the image is missing, unreadable, too large, or its digest differs from `sha256`.
            UnknownImageError: `image` is None and the embedding is not in the cache.
            SegmenterError: the segmenter failed on a valid image.
        """
        return await self._ask(image, sha256, prompts, None)

    async def overlap(
        self, image: str | Path | None, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth
    ) -> Overlap:
        """The overlap of the union of the prompts' masks with the union of the true masks, without ignored pixels.

        Args:
            truth: true masks and ignored pixels, of the image's size (H, W). Other arguments as for `segment`.

        Raises:
            ImageError, SegmenterError: as `segment`.
            MaskError: a true mask does not decode, or its size differs from the image's.
        """
        return await self._ask(image, sha256, prompts, truth)

    async def prefetch(self, image: str | Path | None, sha256: str) -> None:
        """Queue the encode of an image that later requests will name, behind all work that a request waits for.

        Returns at once. A failed encode is logged, and the request for the image encodes it again.
        """
        with self._lock:
            if sha256 not in self._memory and sha256 not in self._encodes:
                self._queue_encode(image, sha256, Priority.AHEAD)

    async def size(self, image: str | Path | None, sha256: str) -> tuple[int, int]:
        """(H, W) of an image. Encodes it where needed; the call is not in the counters. Raises as `segment`."""
        return (await self._embedding(image, sha256, counted=False)).size

    def counters(self) -> Counters:
        """The counters since the engine was made."""
        with self._lock:
            return replace(self._counters, cached_bytes=int(self._memory.currsize), queued=len(self._worker))

    def place(self) -> str:
        """The process, node and device of the segmenter, for a log."""
        return place_of(getattr(self._segmenter, "device", "chosen by the backend"))

    def busy_seconds(self) -> float:
        """Seconds since the running computation started; 0: idle; infinite: the engine's thread has ended."""
        return self._worker.busy_seconds()

    def close(self) -> None:
        """Wait for the running computation and cancel the queued ones."""
        self._worker.close()
        with self._lock:
            waiting = [encode.future for encode in self._encodes.values()]
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
            encode = self._encodes.get(sha256)
            if encode is None or (encode.image is None and image is not None and not encode.started):
                encode = self._queue_encode(image, sha256, Priority.ENCODE)
            elif not encode.started and encode.priority is Priority.AHEAD:
                encode.priority = Priority.ENCODE
                self._worker.submit(Priority.ENCODE, lambda: self._run_encode(sha256, encode))
        try:
            # Shielded: when one waiting request is cancelled, the others still get the embedding.
            return await asyncio.shield(asyncio.wrap_future(encode.future))
        finally:
            with self._lock:
                self._count(wait_seconds=counted * (time.perf_counter() - started))

    def _queue_encode(self, image: str | Path | None, sha256: str, priority: Priority) -> _Encode:
        """Queue an encode. The caller holds the lock."""
        encode = _Encode(_path(image), priority)
        self._worker.submit(priority, lambda: self._run_encode(sha256, encode))
        self._encodes[sha256] = encode
        return encode

    def _run_encode(self, sha256: str, encode: _Encode) -> None:
        """Make the embedding. The same encode may be queued twice, at two priorities; the second call does nothing."""
        with self._lock:
            if encode.started:
                return
            encode.started = True
        try:
            embedding: Embedding | Exception = self._load_or_encode(encode.image, sha256)
        except Exception as error:
            if encode.priority is Priority.AHEAD:
                _log.warning("encode ahead of time: %s", error)
            embedding = error
        with self._lock:  # both under one lock: a new request either finds the embedding or queues a new encode
            if isinstance(embedding, Embedding) and embedding.nbytes <= self._memory.maxsize:
                self._memory[sha256] = embedding
            if self._encodes.get(sha256) is encode:
                del self._encodes[sha256]
        if isinstance(embedding, Embedding):
            encode.future.set_result(embedding)
        else:
            encode.future.set_exception(embedding)

    def _load_or_encode(self, image: Path | None, sha256: str) -> Embedding:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ImageError(f"{image}: the row's SHA-256 is {sha256!r}, expected 64 hexadecimal digits")
        if self._folder is not None and (kept := self._folder.get(sha256)) is not None:
            with self._lock:
                self._count(disk_hits=1)
            return kept
        if image is None:
            raise UnknownImageError(f"the image with SHA-256 {sha256} is not known here. Upload it, or send its path")
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
        """Decode the prompts of all requests that wait for this image, and set their results."""
        with self._lock:
            waiting = self._jobs.pop(sha256)
        jobs = [job for job in waiting if job.future.set_running_or_notify_cancel()]
        embedding = restored(embedding)
        while jobs:
            batch, jobs = jobs[:TOGETHER], jobs[TOGETHER:]
            self._answer(batch, embedding)

    def _answer(self, jobs: list[_Job], embedding: Embedding) -> None:
        started = time.perf_counter()
        prompts = list(dict.fromkeys(prompt for job in jobs for prompt in job.prompts))
        try:
            by_prompt = dict(zip(prompts, self._segmenter.decode(embedding, prompts), strict=True))
        except Exception as error:
            if len(jobs) > 1:  # each request alone, so that one request's prompts do not fail the others
                for job in jobs:
                    self._answer([job], embedding)
                return
            message = f"{jobs[0].image or 'the image'}: {self.identity} failed to decode {prompts}: {error}"
            jobs[0].future.set_exception(SegmenterError(message))
            return
        with self._lock:
            self._count(decodes=len(prompts), decode_seconds=time.perf_counter() - started)
        for job in jobs:
            predictions = [by_prompt[prompt] for prompt in job.prompts]
            try:
                if job.truth is None:
                    job.future.set_result(predictions)
                else:
                    job.future.set_result(_overlap(job, predictions, embedding.size))
            except Exception as error:
                job.future.set_exception(error)

    def _count(self, **more: float) -> None:
        sums = {name: getattr(self._counters, name) + number for name, number in more.items()}
        self._counters = replace(self._counters, **sums)


def engine_of(config: SegmenterConfig, max_pixels: int | None = None) -> Engine:
    """The engine that serves a segmenter in this process.

    Args:
        max_pixels: as for `Engine`.

    Raises:
        ConfigError: the segmenter cannot be loaded.
    """
    service = config.service
    folder = None if service.cache_dir is None else Path(service.cache_dir)
    return Engine(load_segmenter(config), int(service.cache_gb * 1e9), folder, service.cache_dtype, max_pixels)


def _overlap(job: _Job, predictions: list[Prediction], size: tuple[int, int]) -> Overlap:
    """The overlap of one request. Raises MaskError, with the image's path, as `Engine.overlap`."""
    assert job.truth is not None
    try:
        job.truth.check_size(size)
        truth, ignore = job.truth.union_and_ignore()
    except MaskError as error:
        raise MaskError(f"{job.image or 'the image'}: {error}") from error
    masks, scores = [prediction.mask for prediction in predictions], [prediction.score for prediction in predictions]
    return overlap_of(masks, scores, truth, ignore)


def _path(image: str | Path | None) -> Path | None:
    return None if image is None else Path(image)
