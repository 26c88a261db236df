"""The protocol of a segmenter: it encodes an image once and decodes prompts on the embedding many times.

Arguments and results are in the original frame (geometry/frames.py): continuous XY pixel coordinates of the image file
after its EXIF orientation. A backend scales to its own input size internally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from samr1_verl import Samr1Error
from samr1_verl.geometry.prompt import Prompt


class SegmenterError(Samr1Error, RuntimeError):
    """The segmenter failed on valid input. The error never becomes a score."""


_BFLOAT16_EXPONENT = np.uint16(0x7F80)  # all of its bits are set in infinities and NaN


@dataclass(frozen=True, eq=False)
class Embedding:
    """The encoder's result for one image: arrays by name, and the image's `size` (H, W) in the original frame.

    NumPy has no bfloat16: an array of uint16 holds the bits of bfloat16 values.
    """

    arrays: dict[str, np.ndarray]
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(array.nbytes for array in self.arrays.values())

    def not_finite(self) -> str | None:
        """Name of an array with a value that is infinite or no number; None: there is none."""
        for name, array in self.arrays.items():
            finite = (
                (array & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT if array.dtype == np.uint16 else np.isfinite(array)
            )
            if not finite.all():
                return name
        return None


@dataclass(frozen=True, eq=False)
class Prediction:
    """The result of one prompt."""

    mask: np.ndarray  # HxW bool, original frame
    score: float  # IoU that the segmenter predicts for the mask


@dataclass(frozen=True)
class Limits:
    """Upper bounds of the work that a segmenter does together, and of the data that it keeps on its device."""

    prompts: int  # per decoder call
    images: int  # per encoder call
    embeddings: int  # the newest ones, kept on the device
    mask_bytes: int  # of the masks that one call of `decode_on_device` leaves on the device, one byte per pixel


# On a CPU each prompt is one call: the 4 MB of image tokens of one prompt fit the CPU's cache, and one call with eight
# prompts takes 1.3 to 1.6 times as long as eight calls. Arrays in host memory are on the device already.
CPU_LIMITS = Limits(prompts=1, images=1, embeddings=0, mask_bytes=0)


@dataclass(frozen=True, eq=False)
class DevicePrediction:
    """The result of one prompt, with its mask on the segmenter's device."""

    mask: Any  # torch tensor, HxW bool, original frame
    score: float  # as `Prediction.score`


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


@runtime_checkable
class DeviceSegmenter(Segmenter, Protocol):
    """A segmenter that can work on several images at once, and leave masks on its device."""

    device: str  # its name for torch
    limits: Limits
    uploads: int  # embeddings copied from host memory to the device until now

    def encode_batch(self, images: Sequence[np.ndarray]) -> list[Embedding]:
        """The embeddings of at most `limits.images` images. Arguments and errors of each as for `encode`."""

    def decode_on_device(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[DevicePrediction]:
        """As `decode`, with masks that stay on the device."""
