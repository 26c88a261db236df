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

import numpy as np
from cachetools import LRUCache, cached

from samr1_verl.geometry.masks import MaskError
from samr1_verl.geometry.overlap import Overlap, overlap_of
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth, TruthRuns
from samr1_verl.segmenters.base import CPU_LIMITS, DeviceSegmenter, Embedding, Prediction, Segmenter, SegmenterError
from samr1_verl.service.cache import restored
from samr1_verl.service.counters import Tally
from samr1_verl.service.worker import Priority, Worker

TOGETHER = 16  # maximum number of requests that are decoded together
MASK_BYTES = 64_000_000  # of masks that are in memory together, one byte per pixel; a single mask may have more


@dataclass(eq=False)
class _Job:
    """A request that has its embedding and waits for the decoder."""

    image: Path | None
    prompts: Sequence[Prompt]
    truth: GroundTruth | None  # None: the result is the masks, else the overlap with the true masks
    runs: TruthRuns | None  # of `truth`
    future: Future[Any] = field(default_factory=Future)

    def true_masks(self) -> tuple[Any, Any]:
        """The true mask and the ignored pixels."""
        assert self.runs is not None
        return self.runs.masks()


def _runs_of(image: Path | None, truth: GroundTruth, size: tuple[int, int]) -> TruthRuns:
    """The true masks as runs. Raises MaskError, with the image's path, as `engine.Engine.overlap`."""
    try:
        truth.check_size(size)
        return truth.runs()
    except MaskError as error:
        raise MaskError.within(f"{image or 'the image'}", error) from error


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
        # Read here and not in the segmenter's thread: long masks are read while other requests compute.
        runs = None if truth is None else await asyncio.to_thread(_runs_of, image, truth, embedding.size)
        job = _Job(image, prompts, truth, runs)
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
            count = self._together(jobs, embedding.size)
            batch, jobs = jobs[:count], jobs[count:]
            self._answer(batch, embedding)

    def _together(self, jobs: Sequence[_Job], size: tuple[int, int]) -> int:
        """Number of the first jobs that are decoded together; at least one."""
        prompts: set[Prompt] = set()
        for count, job in enumerate(jobs[:TOGETHER]):
            prompts.update(job.prompts)
            if count and len(prompts) * size[0] * size[1] > max(MASK_BYTES, self._mask_bytes):
                return count
        return min(len(jobs), TOGETHER)

    def _answer(self, jobs: list[_Job], embedding: Embedding) -> None:
        started = time.perf_counter()
        prompts = list(dict.fromkeys(prompt for job in jobs for prompt in job.prompts))
        on_device = self._counts_on_device(jobs, embedding, len(prompts))
        if on_device is None and len(prompts) > masks_at_once(embedding.size):
            if len(jobs) > 1:
                for job in jobs:
                    self._answer([job], embedding)
                return
            if jobs[0].truth is not None:
                self._answer_in_portions(jobs[0], embedding)
                return
        try:
            decode = self._segmenter.decode if on_device is None else on_device.decode_on_device
            by_prompt: dict[Prompt, Any] = dict(zip(prompts, decode(embedding, prompts), strict=True))
        except Exception as error:
            if len(jobs) > 1:  # each request alone, so that one request's prompts do not fail the others
                for job in jobs:
                    self._answer([job], embedding)
                return
            jobs[0].future.set_exception(self._fault(jobs[0], prompts, error))
            return
        self._tally.add(decodes=len(prompts), decode_seconds=time.perf_counter() - started)
        result_of = _host_result if on_device is None else _device_results(on_device.device)
        for job in jobs:
            try:
                job.future.set_result(result_of(job, [by_prompt[prompt] for prompt in job.prompts]))
            except Exception as error:
                job.future.set_exception(error)

    def _answer_in_portions(self, job: _Job, embedding: Embedding) -> None:
        """The overlap of one request whose masks are too large to be in memory together."""
        started, prompts, portion = time.perf_counter(), list(dict.fromkeys(job.prompts)), masks_at_once(embedding.size)
        union, scores = np.zeros(embedding.size, dtype=bool), {}
        try:
            for start in range(0, len(prompts), portion):
                part = prompts[start : start + portion]
                for prompt, prediction in zip(part, self._segmenter.decode(embedding, part), strict=True):
                    union |= prediction.mask
                    scores[prompt] = prediction.score
        except Exception as error:
            job.future.set_exception(self._fault(job, prompts, error))
            return
        self._tally.add(decodes=len(prompts), decode_seconds=time.perf_counter() - started)
        job.future.set_result(overlap_of([union], [scores[prompt] for prompt in job.prompts], *job.true_masks()))

    def _fault(self, job: _Job, prompts: Sequence[Prompt], error: Exception) -> SegmenterError:
        image, identity = job.image or "the image", self._segmenter.identity
        return SegmenterError("decode_failed", f"{image}", f"{identity} failed to decode {prompts}: {error}")

    def _counts_on_device(self, jobs: Sequence[_Job], embedding: Embedding, masks: int) -> DeviceSegmenter | None:
        """The segmenter, where all masks are only counted and fit its device; None: they come to host memory."""
        height, width = embedding.size
        fits = 0 < masks * height * width <= self._mask_bytes and all(job.truth is not None for job in jobs)
        return self._segmenter if fits and isinstance(self._segmenter, DeviceSegmenter) else None


def masks_at_once(size: tuple[int, int]) -> int:
    """Number of masks of an image of `size` (H, W) that MASK_BYTES hold; at least one."""
    return max(1, MASK_BYTES // (size[0] * size[1]))


def _host_result(job: _Job, predictions: list[Prediction]) -> list[Prediction] | Overlap:
    """The result of one request, from masks in host memory."""
    if job.truth is None:
        return predictions
    masks, scores = [prediction.mask for prediction in predictions], [prediction.score for prediction in predictions]
    return overlap_of(masks, scores, *job.true_masks())


def _device_results(device: str) -> Callable[[_Job, list[Any]], Overlap]:
    """The function for the result of one request, from masks on a device. A group's true mask is copied there once."""
    from samr1_verl.segmenters.device_overlap import DeviceTruth  # needs torch, which other segmenters do not

    truths: dict[GroundTruth | None, DeviceTruth] = {}

    def result_of(job: _Job, predictions: list[Any]) -> Overlap:
        masks = None if job.truth in truths else job.true_masks()
        try:
            if masks is not None:
                truths[job.truth] = DeviceTruth(*masks, device)
            return truths[job.truth].overlap(predictions)
        except RuntimeError as error:  # torch's faults: out of memory, a lost device
            image = job.image or "the image"
            raise SegmenterError("overlap_failed", f"{image}", f"no overlap on {device}: {error}") from error

    return result_of
