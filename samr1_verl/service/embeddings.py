"""The embeddings of one segmenter: from memory, from the cache folder, or encoded. Every image is encoded once.

Requests that arrive during an encode wait for it. On a GPU, images that wait are encoded together.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samr1_verl.geometry.images import ImageError
from samr1_verl.segmenters.base import CPU_LIMITS, DeviceSegmenter, Embedding, Segmenter, SegmenterError
from samr1_verl.service.cache import FolderCache, halved, memory_cache
from samr1_verl.service.counters import Tally
from samr1_verl.service.source import read_image
from samr1_verl.service.worker import Priority, Worker

_log = logging.getLogger(__name__)


class UnknownImageError(ImageError):
    """An image that is named by its digest alone and whose embedding the engine does not have."""


@dataclass(eq=False)
class _Encode:
    """An encode that is queued or running; all requests for the image wait for its future."""

    image: Path | None
    sha256: str
    priority: Priority
    future: Future[Embedding] = field(default_factory=Future)
    started: bool = False


class Embeddings:
    """Looks embeddings up, and makes those that are missing in the worker's thread.

    Args:
        segmenter: encodes.
        worker: the thread.
        tally: counts.
        memory_bytes: maximum size of the embeddings kept in memory.
        folder: keeps embeddings for later runs; None: no folder.
        halve: keep float32 embeddings as float16.
        max_pixels: maximum number of pixels per image; None: Pillow's own limit.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        worker: Worker,
        tally: Tally,
        memory_bytes: int,
        folder: FolderCache | None,
        halve: bool,
        max_pixels: int | None,
    ) -> None:
        self._segmenter, self._worker, self._tally = segmenter, worker, tally
        self._memory, self._folder = memory_cache(memory_bytes), folder
        self._halve, self._max_pixels = halve, max_pixels
        self._limits = segmenter.limits if isinstance(segmenter, DeviceSegmenter) else CPU_LIMITS
        self._encodes: dict[str, _Encode] = {}  # by digest, in the order of their first request
        self._lock = threading.Lock()  # guards memory and encodes; never held while computing

    async def get(self, image: Path | None, sha256: str, counted: bool = True) -> Embedding:
        """The embedding of an image. Raises as `engine.Engine.segment`. `counted`: the call is a request."""
        started = time.perf_counter()
        with self._lock:
            cached = self._memory.get(sha256)
            self._tally.add(requests=counted, hits=counted and cached is not None)
            if cached is not None:
                return cached
            encode = self._encodes.get(sha256)
            if encode is None or (encode.image is None and image is not None and not encode.started):
                encode = self._queue(image, sha256, Priority.ENCODE)
            elif not encode.started and encode.priority is Priority.AHEAD:
                encode.priority = Priority.ENCODE
                self._worker.submit(Priority.ENCODE, lambda: self._run(encode))
        try:
            # Shielded: when one waiting request is cancelled, the others still get the embedding.
            return await asyncio.shield(asyncio.wrap_future(encode.future))
        finally:
            self._tally.add(wait_seconds=counted * (time.perf_counter() - started))

    def prefetch(self, image: Path | None, sha256: str, done: Callable[[], None] | None = None) -> None:
        """Queue the encode of an image that later requests will name. Returns at once.

        `done` is called when the encode ended, or at once where the embedding is in memory.
        """
        encode = None
        with self._lock:
            if sha256 not in self._memory:
                encode = self._encodes.get(sha256) or self._queue(image, sha256, Priority.AHEAD)
        if done is None:
            return
        if encode is None:
            done()
        else:
            encode.future.add_done_callback(lambda _: done())

    def nbytes(self) -> int:
        """Size of the embeddings in memory."""
        with self._lock:
            return int(self._memory.currsize)

    def cancel(self) -> None:
        """Cancel the requests that wait for an encode."""
        with self._lock:
            waiting = [encode.future for encode in self._encodes.values()]
        for future in waiting:
            future.cancel()

    def _queue(self, image: Path | None, sha256: str, priority: Priority) -> _Encode:
        """Queue an encode. The caller holds the lock."""
        encode = _Encode(image, sha256, priority)
        self._worker.submit(priority, lambda: self._run(encode))
        self._encodes[sha256] = encode
        return encode

    def _run(self, encode: _Encode) -> None:
        """Make the embedding, and those of images that wait as urgently, as many as the segmenter takes together.

        The same encode may be queued twice, at two priorities, or run with another one; a later call does nothing.
        """
        with self._lock:
            if encode.started:
                return
            others = (other for other in self._encodes.values() if other is not encode and not other.started)
            urgent = [other for other in others if other.priority <= encode.priority]
            together = [encode, *urgent[: self._limits.images - 1]]
            for one in together:
                one.started = True
        try:
            made = self._make(together)
        except Exception as error:  # such as a batch with too few embeddings; without an answer its requests would hang
            made = [error] * len(together)
        for one, embedding in zip(together, made, strict=True):
            self._finish(one, embedding)

    def _finish(self, encode: _Encode, embedding: Embedding | Exception) -> None:
        if isinstance(embedding, Exception) and encode.priority is Priority.AHEAD:
            _log.warning("encode ahead of time: %s", embedding)
        with self._lock:  # both under one lock: a new request either finds the embedding or queues a new encode
            if isinstance(embedding, Embedding) and embedding.nbytes <= self._memory.maxsize:
                self._memory[encode.sha256] = embedding
            if self._encodes.get(encode.sha256) is encode:
                del self._encodes[encode.sha256]
        if isinstance(embedding, Embedding):
            encode.future.set_result(embedding)
        else:
            encode.future.set_exception(embedding)

    def _make(self, encodes: Sequence[_Encode]) -> list[Embedding | Exception]:
        """The embedding of each image, or the error that its requests get."""
        made: dict[_Encode, Embedding | Exception] = {}
        images: list[tuple[_Encode, np.ndarray]] = []
        for encode in encodes:
            stored = self._stored_or_pixels(encode)
            if isinstance(stored, np.ndarray):
                images.append((encode, stored))
            else:
                made[encode] = stored
        if images:
            made |= zip((encode for encode, _ in images), self._encode(images), strict=True)
        return [made[encode] for encode in encodes]

    def _stored_or_pixels(self, encode: _Encode) -> Embedding | np.ndarray | Exception:
        """The embedding from the folder, else the image's pixels (HxWx3 uint8), or the error of the image."""
        image, sha256 = encode.image, encode.sha256
        try:
            if not re.fullmatch(r"[0-9a-f]{64}", sha256):
                raise ImageError(
                    "malformed_digest", f"{image}", f"the row's SHA-256 is {sha256!r}, expected 64 hexadecimal digits"
                )
            if self._folder is not None and (kept := self._folder.get(sha256)) is not None:
                self._tally.add(disk_hits=1)
                return kept
            if image is None:
                raise UnknownImageError(
                    "unknown_image", f"SHA-256 {sha256}", "the image is not known here. Upload it, or send its path"
                )
            return read_image(image, sha256, self._max_pixels)
        except ImageError as error:
            return error
        except Exception as error:  # a fault of the machine, such as too many open files: another attempt may succeed
            fault = SegmenterError("image_not_read", f"{image}", f"not read ({error})")
            fault.__cause__ = error
            return fault

    def _encode(self, images: Sequence[tuple[_Encode, np.ndarray]]) -> list[Embedding | Exception]:
        started = time.perf_counter()
        try:
            embeddings = self._encoder([pixels for _, pixels in images])
        except Exception as error:
            if len(images) > 1:  # each image alone, so that one image does not fail the others
                return [self._encode([image])[0] for image in images]
            ((encode, _),) = images
            if isinstance(error, ImageError):
                fault: Exception = ImageError.within(f"{encode.image}", error)
            else:
                identity = self._segmenter.identity
                fault = SegmenterError("encode_failed", f"{encode.image}", f"{identity} failed to encode it: {error}")
            fault.__cause__ = error
            return [fault]
        self._tally.add(encodes=len(images), encode_seconds=time.perf_counter() - started)
        return [self._kept(encode, embedding) for (encode, _), embedding in zip(images, embeddings, strict=True)]

    def _kept(self, encode: _Encode, embedding: Embedding) -> Embedding | SegmenterError:
        """A new embedding in the form in which it is kept, after it is stored in the folder; or its fault."""
        if (name := embedding.not_finite()) is not None:
            return SegmenterError(
                "embedding_not_finite",
                f"{encode.image}",
                f"{self._segmenter.identity} made an embedding whose array {name} has values that are no numbers. Set "
                "samr1.segmenter.dtype and encoder_precision to float32; if they are, get the weights again",
            )
        embedding = halved(embedding) if self._halve else embedding
        if self._folder is not None:
            self._folder.put(encode.sha256, embedding)
        return embedding

    def _encoder(self, images: Sequence[np.ndarray]) -> list[Embedding]:
        if len(images) > 1:
            assert isinstance(self._segmenter, DeviceSegmenter)
            return self._segmenter.encode_batch(images)
        return [self._segmenter.encode(images[0])]
