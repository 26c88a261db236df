"""What a reward needs of masks: pixel counts, which travel between processes where masks need not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samr1_verl.geometry.giou import PixelCounts


@dataclass(frozen=True)
class Overlap:
    """Predicted mask against ground truth; `score` is the segmenter's own mean."""

    pixels: PixelCounts
    score: float


def overlap_of(
    masks: Sequence[np.ndarray], scores: Sequence[float], truth: np.ndarray, ignore: np.ndarray | None
) -> Overlap:
    """The union of the predicted masks against the true mask.

    Args:
        masks: at least one, HxW bool each, original frame.
        scores: the IoU that the segmenter predicts for each.
        truth: HxW bool.
        ignore: pixels that do not count, HxW bool, or None.

    Raises:
        MaskError: masks of different sizes.
    """
    return Overlap(PixelCounts.of(np.logical_or.reduce(masks), truth, ignore), float(np.mean(scores)))
