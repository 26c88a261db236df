"""The protocol of every segmenter: image to embedding once, embedding and prompts to masks many times.

Everything a caller sees is in the original frame (geometry/frames.py): continuous XY pixel coordinates of the image
file after its EXIF orientation. A backend scales to its own input inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from samr1_verl import Samr1Error
from samr1_verl.geometry.prompt import Prompt


class SegmenterError(Samr1Error, RuntimeError):
    """The segmenter failed where its input was sound: a fault, never a score."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """A segmenter's knowledge of one image: named arrays, and the image's `size` (H, W) in the original frame."""

    arrays: dict[str, np.ndarray]
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, by which a cache is bounded."""
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
