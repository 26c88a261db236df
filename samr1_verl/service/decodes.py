"""The decodes of one segmenter: prompts that wait for the same image are decoded together, equal prompts once.

Where the segmenter can leave masks on its device, masks that are only counted stay there.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cachetools import LRUCache, cached

from samr1_verl.geometry.masks import MaskError
from samr1_verl.geometry.overlap import Overlap, overlap_of
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters.base import CPU_LIMITS, DeviceSegmenter, Embedding, Prediction, Segmenter, SegmenterError
from samr1_verl.service.cache import restored
from samr1_verl.service.counters import Tally
from samr1_verl.service.worker import Priority, Worker

# Maximum number of requests that are decoded together: the masks of all of them, at the image's size, are in memory.
TOGETHER = 16


@dataclass(eq=False)
class _Job:
    """A request that has its embedding and waits for the decoder."""

    image: Path | None
    prompts: Sequence[Prompt]
    truth: GroundTruth | None  # None: the result is the masks, else the overlap with the true masks
    future: Future[Any] = field(default_factory=Future)

    def true_masks(self, size: tuple[int, int]) -> tuple[Any, Any]:
        """The true mask and the ignored pixels. Raises MaskError, with the image's path, as `engine.Engine.overlap`."""
        assert self.truth is not None
        try:
            self.truth.check_size(size)
            return self.truth.union_and_ignore()
        except MaskError as error:
            raise MaskError(f"{self.image or 'the image'}: {error}") from error


class Decodes:
    """Decodes in the worker's thread.

    Args:
        segmenter: decodes.
        worker: the thread.
        tally: counts.
    """

    def __init__(self, segmenter: Segmenter, worker: Worker, tally: Tally) -> None:
        self._segmenter, self._worker, self._tally = segmenter, worker, tally
        limits = segmenter.limits if isinstance(segmenter, DeviceSegmenter) else CPU_LIMITS
        self._mask_bytes = limits.mask_bytes
        # The segmenter knows an embedding on its device by the object, so a restored one must stay the same object.
        self._restored = cached(LRUCache(limits.embeddings))(restored) if limits.embeddings else restored
        self._jobs: dict[str, list[_Job]] = {}  # by digest
        self._lock = threading.Lock()  # guards jobs; never held while computing

    async def answer(
        self,
        image: Path | None,
        sha256: str,
        embedding: Embedding,
        prompts: Sequence[Prompt],
        truth: GroundTruth | None,
    ) -> Any:
        """The predictions of the prompts, or their overlap with `truth`. Raises as `engine.Engine.overlap`."""
        job = _Job(image, prompts, truth)
        with self._lock:
            if sha256 not in self._jobs:
                self._worker.submit(Priority.DECODE, lambda: self._run(sha256, embedding))
                self._jobs[sha256] = []
            self._jobs[sha256].append(job)
        return await asyncio.wrap_future(job.future)

    def cancel(self) -> None:
        """Cancel the requests that wait for a decode."""
        with self._lock:
            waiting = [job.future for jobs in self._jobs.values() for job in jobs]
        for future in waiting:
            future.cancel()

    def _run(self, sha256: str, embedding: Embedding) -> None:
        """Decode the prompts of all requests that wait for this image, and set their results."""
        with self._lock:
            waiting = self._jobs.pop(sha256)
        jobs = [job for job in waiting if job.future.set_running_or_notify_cancel()]
        embedding = self._restored(embedding)
        while jobs:
            batch, jobs = jobs[:TOGETHER], jobs[TOGETHER:]
            self._answer(batch, embedding)

    def _answer(self, jobs: list[_Job], embedding: Embedding) -> None:
        started = time.perf_counter()
        prompts = list(dict.fromkeys(prompt for job in jobs for prompt in job.prompts))
        on_device = self._counts_on_device(jobs, embedding, len(prompts))
        try:
            decode = self._segmenter.decode if on_device is None else on_device.decode_on_device
            by_prompt: dict[Prompt, Any] = dict(zip(prompts, decode(embedding, prompts), strict=True))
        except Exception as error:
            if len(jobs) > 1:  # each request alone, so that one request's prompts do not fail the others
                for job in jobs:
                    self._answer([job], embedding)
                return
            message = f"{jobs[0].image or 'the image'}: {self._segmenter.identity} failed to decode {prompts}: {error}"
            jobs[0].future.set_exception(SegmenterError(message))
            return
        self._tally.add(decodes=len(prompts), decode_seconds=time.perf_counter() - started)
        result_of = _host_result if on_device is None else _device_results(on_device.device)
        for job in jobs:
            try:
                job.future.set_result(result_of(job, [by_prompt[prompt] for prompt in job.prompts], embedding.size))
            except Exception as error:
                job.future.set_exception(error)

    def _counts_on_device(self, jobs: Sequence[_Job], embedding: Embedding, masks: int) -> DeviceSegmenter | None:
        """The segmenter, where all masks are only counted and fit its device; None: they come to host memory."""
        height, width = embedding.size
        fits = 0 < masks * height * width <= self._mask_bytes and all(job.truth is not None for job in jobs)
        return self._segmenter if fits and isinstance(self._segmenter, DeviceSegmenter) else None


def _host_result(job: _Job, predictions: list[Prediction], size: tuple[int, int]) -> list[Prediction] | Overlap:
    """The result of one request, from masks in host memory."""
    if job.truth is None:
        return predictions
    truth, ignore = job.true_masks(size)
    masks, scores = [prediction.mask for prediction in predictions], [prediction.score for prediction in predictions]
    return overlap_of(masks, scores, truth, ignore)


def _device_results(device: str) -> Callable[[_Job, list[Any], tuple[int, int]], Overlap]:
    """The function for the result of one request, from masks on a device. A group's true mask is copied there once."""
    from samr1_verl.segmenters.device_overlap import DeviceTruth  # needs torch, which other segmenters do not

    truths: dict[GroundTruth | None, DeviceTruth] = {}

    def result_of(job: _Job, predictions: list[Any], size: tuple[int, int]) -> Overlap:
        masks = None if job.truth in truths else job.true_masks(size)
        try:
            if masks is not None:
                truths[job.truth] = DeviceTruth(*masks, device)
            return truths[job.truth].overlap(predictions)
        except RuntimeError as error:  # torch's faults: out of memory, a lost device
            raise SegmenterError(f"{job.image or 'the image'}: no overlap on {device}: {error}") from error

    return result_of
