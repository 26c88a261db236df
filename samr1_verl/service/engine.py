"""The engine: one segmenter, its embedding cache, and one thread that computes.

A request names an image by path and SHA-256. The first request for an image opens it, holds it against its digest and
encodes it; requests that come meanwhile wait for the same encode, later ones find the embedding. An encode or a decode
runs in the engine's own thread, so the caller's event loop stays free. Requests may come from any thread and loop.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from samr1_verl.frames import ImageError, open_image, sha256_of
from samr1_verl.ground_truth import GroundTruth
from samr1_verl.masks import MaskError, intersection_union
from samr1_verl.segmenters.base import Embedding, Prediction, Prompt, Segmenter, SegmenterError
from samr1_verl.service.cache import FolderCache, MemoryCache


@dataclass(frozen=True)
class Counters:
    """What an engine did since it was made. Requests are `encodes + disk_hits + hits`, less those that failed."""

    encodes: int = 0  # images encoded
    disk_hits: int = 0  # embeddings read from the cache folder
    hits: int = 0  # requests that found an embedding in memory, or one on its way
    decodes: int = 0  # prompts decoded
    cached_bytes: int = 0  # of embeddings in memory now


@dataclass(frozen=True)
class Overlap:
    """Predicted mask against ground truth, in pixels of the original image; `score` is the segmenter's own mean."""

    intersection: int
    union: int
    score: float


class Engine:
    """Serves one segmenter in this process.

    Args:
        segmenter: called from one thread only.
        cache_bytes: bound of the embeddings kept in memory.
        cache_dir: folder that keeps embeddings for later runs, or None.
    """

    def __init__(self, segmenter: Segmenter, cache_bytes: int, cache_dir: Path | None = None) -> None:
        self._segmenter = segmenter
        self._memory = MemoryCache(cache_bytes)
        self._folder = None if cache_dir is None else FolderCache(cache_dir, segmenter.identity)
        self._flights: dict[str, Future[Embedding]] = {}
        self._counters = Counters()
        self._lock = threading.Lock()  # guards memory, flights and counters; held for no computation
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="segmenter")

    async def segment(self, image: str | Path, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]:
        """One mask for each prompt, in order, HxW bool in the original frame.

        Raises:
            ImageError: the image is missing, unreadable, or not the file that the digest describes.
            SegmenterError: the segmenter failed on a sound image.
        """
        embedding = await self._embedding(Path(image), sha256)
        return await asyncio.wrap_future(self._thread.submit(self._decode, Path(image), embedding, prompts))

    async def overlap(self, image: str | Path, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth) -> Overlap:
        """The union of the prompts' masks against the union of the true masks, ignored pixels left out.

        Raises:
            ImageError, SegmenterError: as `segment`.
            MaskError: the truth does not decode, or its size is not the image's.
        """
        embedding = await self._embedding(Path(image), sha256)
        return await asyncio.wrap_future(self._thread.submit(self._overlap, Path(image), embedding, prompts, truth))

    def counters(self) -> Counters:
        """What this engine did so far."""
        with self._lock:
            return replace(self._counters, cached_bytes=self._memory.nbytes)

    def close(self) -> None:
        """Finish the running computation and drop the waiting ones."""
        self._thread.shutdown(cancel_futures=True)

    async def _embedding(self, image: Path, sha256: str) -> Embedding:
        with self._lock:
            if (cached := self._memory.get(sha256)) is not None:
                self._count(hits=1)
                return cached
            if sha256 in self._flights:
                self._count(hits=1)
            else:
                self._flights[sha256] = self._thread.submit(self._make_embedding, image, sha256)
            flight = self._flights[sha256]
        # Shielded: when one waiting request is cancelled, the others still get the embedding.
        return await asyncio.shield(asyncio.wrap_future(flight))

    def _make_embedding(self, image: Path, sha256: str) -> Embedding:
        try:
            embedding = self._load_or_encode(image, sha256)
            with self._lock:
                self._memory.put(sha256, embedding)
            return embedding
        finally:
            with self._lock:  # after the cache has it, or for a next request to try again
                del self._flights[sha256]

    def _load_or_encode(self, image: Path, sha256: str) -> Embedding:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ImageError(f"{image}: the row's SHA-256 is {sha256!r}, expected 64 hexadecimal digits")
        if self._folder is not None and (kept := self._folder.get(sha256)) is not None:
            with self._lock:
                self._count(disk_hits=1)
            return kept
        if (found := sha256_of(image)) != sha256:
            raise ImageError(
                f"{image}: its SHA-256 is {found}, the row says {sha256}. The file changed after the data was "
                "prepared: put the original back, or prepare the data again"
            )
        pixels = np.asarray(open_image(image))
        try:
            embedding = self._segmenter.encode(pixels)
        except ImageError as error:
            raise ImageError(f"{image}: {error}") from error
        except Exception as error:
            raise SegmenterError(f"{image}: {self._segmenter.identity} failed to encode it: {error}") from error
        with self._lock:
            self._count(encodes=1)
        if self._folder is not None:
            self._folder.put(sha256, embedding)
        return embedding

    def _decode(self, image: Path, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        try:
            predictions = self._segmenter.decode(embedding, prompts)
        except Exception as error:
            raise SegmenterError(f"{image}: {self._segmenter.identity} failed to decode {prompts}: {error}") from error
        with self._lock:
            self._count(decodes=len(prompts))
        return predictions

    def _overlap(self, image: Path, embedding: Embedding, prompts: Sequence[Prompt], truth: GroundTruth) -> Overlap:
        if truth.size != embedding.size:
            raise MaskError(
                f"{image}: the image is {embedding.size[0]}x{embedding.size[1]} (HxW), ground_truth.size is "
                f"{truth.size[0]}x{truth.size[1]}. Prepare the data again from this image"
            )
        union, ignore = truth.union_and_ignore()
        predictions = self._decode(image, embedding, prompts)
        predicted = np.logical_or.reduce([prediction.mask for prediction in predictions])
        return Overlap(
            *intersection_union(predicted, union, ignore),
            score=float(np.mean([prediction.score for prediction in predictions])),
        )

    def _count(self, **more: int) -> None:
        now = {name: getattr(self._counters, name) + number for name, number in more.items()}
        self._counters = replace(self._counters, **now)
