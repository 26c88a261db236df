"""What every segmenter is: image to embedding once, embedding and prompts to masks many times.

Everything a caller sees is in the original frame (frames.py): continuous XY pixel coordinates of the image file after
its EXIF orientation. A backend scales to its own input inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class SegmenterError(RuntimeError):
    """The segmenter failed where its input was sound: a fault, never a score."""


@dataclass(frozen=True)
class Prompt:
    """What to segment: a box, points, or both, original frame.

    `box_original` is x1 y1 x2 y2 or None; `points_original` holds (x, y); `labels` has 1 (on the object) or 0 (not on
    it) for each point. Hashable, so that equal prompts are decoded once.

    Raises:
        ValueError: neither box nor point, or another number of labels than of points.
    """

    box_original: tuple[float, float, float, float] | None
    points_original: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.box_original is None and not self.points_original:
            raise ValueError("a prompt needs a box or a point, this one has neither")
        if len(self.points_original) != len(self.labels):
            raise ValueError(f"{len(self.points_original)} points and {len(self.labels)} labels, expected one a point")


@dataclass(frozen=True, eq=False)
class Embedding:
    """What a segmenter knows of one image: named arrays, and the image's `size` (H, W) in the original frame."""

    arrays: dict[str, np.ndarray]
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, which is what a cache is bounded by."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, eq=False)
class Prediction:
    """One prompt's mask, HxW bool in the original frame, and the IoU that the segmenter predicts for it."""

    mask: np.ndarray
    score: float


class Segmenter(Protocol):
    """A frozen promptable segmenter. Calls come from one thread at a time."""

    @property
    def identity(self) -> str:
        """Names weights and preprocessing: equal identities make equal embeddings. Depends on the weights' content."""

    def encode(self, image: np.ndarray) -> Embedding:
        """Embed an image, HxWx3 uint8 RGB in the original frame. Raises SegmenterError."""

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        """One mask for each prompt, in order. Raises SegmenterError."""
