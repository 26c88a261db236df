"""The overlap of masks as pixel counts, which are small enough to send between processes in place of the masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.masks import MaskError


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of predicted and true mask; `score` is the mean of the IoUs that the segmenter predicts."""

    pixels: PixelCounts
    score: float


def overlap_of(
    masks: Sequence[np.ndarray], scores: Sequence[float], truth: np.ndarray, ignore: np.ndarray | None
) -> Overlap:
    """The overlap of the union of the predicted masks with the true mask, all in the original frame.

    Args:
        masks: at least one mask, HxW bool each.
        scores: the IoU that the segmenter predicts, per mask.
        truth: HxW bool.
        ignore: pixels that do not count, HxW bool; None: every pixel counts.

    Raises:
        MaskError: the masks have different sizes.
    """
    union = masks[0]
    for mask in masks[1:]:  # one by one: numpy would copy all of them first
        if mask.shape != union.shape:
            raise MaskError(
                "shape_differs", "predicted masks", f"found {union.shape} and {mask.shape}: all must be the image's HxW"
            )
        union = union | mask
    return Overlap(PixelCounts.overlap(union, truth, ignore), float(np.mean(scores)))
