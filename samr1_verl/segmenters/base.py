"""The protocol of a segmenter: it encodes an image once and decodes prompts on the embedding many times.

Arguments and results are in the original frame (geometry/frames.py): continuous XY pixel coordinates of the image file
after its EXIF orientation. A backend scales to its own input size internally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from samr1_verl import Samr1Error
from samr1_verl.geometry.prompt import Prompt


class SegmenterError(Samr1Error, RuntimeError):
    """The segmenter failed on valid input. The error never becomes a score."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """The encoder's result for one image: arrays by name, and the image's `size` (H, W) in the original frame."""

    arrays: dict[str, np.ndarray]
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, eq=False)
class Prediction:
    """The result of one prompt."""

    mask: np.ndarray  # HxW bool, original frame
    score: float  # IoU that the segmenter predicts for the mask


class Segmenter(Protocol):
    """A frozen promptable segmenter. Callers use it from one thread at a time.

    Where it has an attribute `device`, such as "cpu" or "cuda:0", a run's output names it.
    """

    @property
    def identity(self) -> str:
        """Name of weights (by their content) and preprocessing. Equal identities make equal embeddings."""

    def encode(self, image: np.ndarray) -> Embedding:
        """The embedding of an image, HxWx3 uint8 RGB in the original frame.

        Raises:
            ImageError: the segmenter cannot take an image of this shape.
            SegmenterError: the segmenter failed.
        """

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        """One prediction per prompt, in the order of the prompts. Prompts and masks are in the original frame.

        Raises:
            SegmenterError: the segmenter failed.
        """
