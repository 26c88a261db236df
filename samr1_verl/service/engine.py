"""The engine: one segmenter, its embedding cache, and one thread that computes.

A request names an image by path and SHA-256. First it gets the image's embedding (embeddings.py), then the decode of
its prompts (decodes.py). All computations run in the engine's own thread (worker.py), so the caller's event loop stays
free. Requests may come from any thread and any event loop. `prefetch` starts an encode before the first request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from samr1_verl.config import SegmenterConfig
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters import load_segmenter
from samr1_verl.segmenters.base import Prediction, Segmenter, SegmenterError
from samr1_verl.service.cache import FolderCache
from samr1_verl.service.counters import Counters, Tally
from samr1_verl.service.decodes import Decodes
from samr1_verl.service.embeddings import Embeddings
from samr1_verl.service.place import place_of
from samr1_verl.service.worker import Worker

T = TypeVar("T")


class Engine:
    """Serves one segmenter in this process.

    Args:
        segmenter: called from one thread only.
        cache_bytes: maximum size of the embeddings kept in memory.
        cache_dir: folder that keeps embeddings for later runs; None: no folder.
        cache_dtype: float16 stores float32 embeddings in half the bytes, rounded to float16 precision.
        max_pixels: maximum number of pixels per image, checked before the file is decoded; None: Pillow's own limit.
        timeout_s: seconds of one computation after which all requests that wait fail; None: they wait.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        cache_bytes: int,
        cache_dir: Path | None = None,
        cache_dtype: Literal["float32", "float16"] = "float32",
        max_pixels: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.identity, self._timeout_s = segmenter.identity, timeout_s
        halve = cache_dtype == "float16"
        kept_as = segmenter.identity + ("-float16" if halve else "")
        folder = None if cache_dir is None else FolderCache(cache_dir, kept_as)
        self._segmenter, self._tally, self._worker = segmenter, Tally(), Worker("segmenter")
        self._embeddings = Embeddings(segmenter, self._worker, self._tally, cache_bytes, folder, halve, max_pixels)
        self._decodes = Decodes(segmenter, self._worker, self._tally)

    async def segment(self, image: str | Path | None, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]:
        """One mask per prompt, in the order of the prompts: HxW bool in the original frame.

        Args:
            image: path of the file; None: the embedding is in the cache and is looked up by its digest.
            sha256: digest of the file's bytes, 64 lower-case hexadecimal digits.
            prompts: box and points in continuous XY pixels of the original frame.

        Raises:
            ImageError: the image is missing, unreadable, too large, or its digest differs from `sha256`.
            UnknownImageError: `image` is None and the embedding is not in the cache.
            SegmenterError: the segmenter failed on a valid image, or its computation takes longer than `timeout_s`.
        """
        return await self._within(self._answer(_path(image), sha256, prompts, None))

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
        return await self._within(self._answer(_path(image), sha256, prompts, truth))

    async def prefetch(self, image: str | Path | None, sha256: str, done: Callable[[], None] | None = None) -> None:
        """Queue the encode of an image that later requests will name, behind all work that a request waits for.

        Returns at once. A failed encode is logged, and the request for the image encodes it again.

        Args:
            done: called, in any thread, when the image is no longer needed: its embedding is made, or failed.
        """
        self._embeddings.prefetch(_path(image), sha256, done)

    async def size(self, image: str | Path | None, sha256: str) -> tuple[int, int]:
        """(H, W) of an image. Encodes it where needed; the call is not in the counters. Raises as `segment`."""
        return (await self._embeddings.get(_path(image), sha256, counted=False)).size

    def counters(self) -> Counters:
        """The counters since the engine was made."""
        uploads = getattr(self._segmenter, "uploads", 0)
        return self._tally.read(uploads=uploads, cached_bytes=self._embeddings.nbytes(), queued=len(self._worker))

    def place(self) -> str:
        """The process, node and device of the segmenter, for a log."""
        return place_of(getattr(self._segmenter, "device", "chosen by the backend"))

    def busy_seconds(self) -> float:
        """Seconds since the running computation started; 0: idle; infinite: the engine's thread has ended."""
        return self._worker.busy_seconds()

    async def _answer(
        self, image: Path | None, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth | None
    ) -> Any:
        embedding = await self._embeddings.get(image, sha256)
        return await self._decodes.answer(image, sha256, embedding, prompts, truth)

    async def _within(self, answer: Awaitable[T]) -> T:
        """The answer. Raises SegmenterError when the running computation takes longer than `timeout_s`.

        The time in the queue does not count: on a CPU a step's images may take longer than one image ever does. The
        thread cannot be ended; `busy_seconds` shows how long it has been at work, and later requests fail at once.
        """
        if self._timeout_s is None:
            return await answer
        waiting = asyncio.ensure_future(answer)
        try:
            while True:
                left = self._timeout_s - self._worker.busy_seconds()
                await asyncio.wait([waiting], timeout=max(left, 0.0))
                if waiting.done():
                    return waiting.result()
                if (busy := self._worker.busy_seconds()) >= self._timeout_s:
                    raise SegmenterError(
                        "segmenter_stuck",
                        self.identity,
                        f"the running computation has taken {busy:.1f} s, the limit is {self._timeout_s:g} s. Such a "
                        "fault never becomes a score. The segmenter's thread cannot be ended: end this process, or "
                        "raise samr1.segmenter.service.timeout_s",
                    )
        finally:
            waiting.cancel()

    def close(self) -> None:
        """Wait for the running computation and cancel the queued ones."""
        self._worker.close()
        self._embeddings.cancel()
        self._decodes.cancel()


def engine_of(config: SegmenterConfig, max_pixels: int | None = None, timeout_s: float | None = None) -> Engine:
    """The engine that serves a segmenter in this process.

    Args:
        max_pixels, timeout_s: as for `Engine`.

    Raises:
        ConfigError: the segmenter cannot be loaded.
    """
    service = config.service
    folder = None if service.cache_dir is None else Path(service.cache_dir)
    cache_bytes, segmenter = int(service.cache_gb * 1e9), load_segmenter(config)
    return Engine(segmenter, cache_bytes, folder, service.cache_dtype, max_pixels, timeout_s)


def _path(image: str | Path | None) -> Path | None:
    return None if image is None else Path(image)
