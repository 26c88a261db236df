"""A segmenter for tests of everything but the segmenter: its mask is the box, without one the points."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samr1_verl.segmenters import Embedding, Prediction, Prompt
from tests.waiting import GUARD_S, wait_until


class BoxSegmenter:
    """Counts its calls, and fails or takes its time on request."""

    def __init__(self, kilobytes: int = 4, seconds: float = 0.0) -> None:
        self.identity, self.device = "boxes/1", "of the test"
        self.kilobytes, self.seconds = kilobytes, seconds
        self.begun, self.gate = threading.Event(), threading.Event()  # of an encode, which waits at a closed gate
        self.gate.set()
        self.encoded: list[tuple[int, int]] = []  # sizes of the images, in order
        self.threads: set[str] = set()
        self.fault: Exception | None = None
        self.poison: Prompt | None = None  # a prompt that it cannot decode

    def encode(self, image: np.ndarray) -> Embedding:
        self.encoded.append(image.shape[:2])
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        self.begun.set()
        assert self.gate.wait(GUARD_S)
        if self.fault is not None:
            raise self.fault
        return Embedding({"mean": np.full(self.kilobytes * 256, image.mean(), np.float32)}, image.shape[:2])

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        if self.fault is not None:
            raise self.fault
        predictions = []
        for prompt in prompts:
            if prompt == self.poison:
                raise RuntimeError("poisoned")
            mask = np.zeros(embedding.size, dtype=bool)
            if prompt.box is not None:
                x1, y1, x2, y2 = (max(0, round(edge)) for edge in prompt.box)
                mask[y1:y2, x1:x2] = True
            else:
                for x, y in prompt.points:
                    mask[min(max(int(y), 0), mask.shape[0] - 1), min(max(int(x), 0), mask.shape[1] - 1)] = True
            predictions.append(Prediction(mask, 0.5))
        return predictions


class FolderSegmenter(BoxSegmenter):
    """In another process: each encode writes a line to a folder's file `encodes`, and waits while it has a `gate`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def encode(self, image: np.ndarray) -> Embedding:
        with (self._folder / "encodes").open("a") as log:
            log.write("begun\n")
        wait_until(lambda: not (self._folder / "gate").exists())
        return super().encode(image)


def image_file(folder: Path, grey: int, size: tuple[int, int] = (10, 20)) -> tuple[Path, str]:
    """An image of one grey, `size` (H, W), and its digest."""
    path = folder / f"{grey}.png"
    Image.fromarray(np.full((*size, 3), grey, dtype=np.uint8)).save(path)
    return path, sha256(path.read_bytes()).hexdigest()


def problems(config: Any) -> Iterator[str]:
    """This module as a backend, for processes that a test does not share.

    `path`: a name and seconds an encode, or a folder and "gate" for a FolderSegmenter.
    """
    if config.path.startswith("cannot load"):
        yield "it cannot be loaded"


def load(config: Any) -> BoxSegmenter:
    name, seconds = config.path.split(",")
    if seconds == "gate":
        return FolderSegmenter(Path(name))
    if ":" in name:  # a file that counts
        with open(name.split(":")[1], "a") as log:
            log.write("loaded\n")
    return BoxSegmenter(seconds=float(seconds))
