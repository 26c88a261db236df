"""What a reward needs of masks: pixel counts, which travel between processes where masks need not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.geometry.masks import MaskError
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.segmenters.base import Prediction


@dataclass(frozen=True)
class Overlap:
    """Predicted mask against ground truth; `score` is the segmenter's own mean."""

    pixels: PixelCounts
    score: float


def overlap_of(
    image: Path | None, size: tuple[int, int], predictions: Sequence[Prediction], truth: GroundTruth
) -> Overlap:
    """The union of the predicted masks against the union of the true ones.

    Args:
        image: names the image in errors.
        size: (H, W) of the image.
        predictions: at least one, with masks of that size.
        truth: what is compared with.

    Raises:
        MaskError: the truth does not decode, or its size is not the image's.
    """
    if truth.size != size:
        raise MaskError(
            f"{image or 'the image'}: the image is {size[0]}x{size[1]} (HxW), ground_truth.size is "
            f"{truth.size[0]}x{truth.size[1]}. Prepare the data again from this image"
        )
    union, ignore = truth.union_and_ignore()
    predicted = np.logical_or.reduce([prediction.mask for prediction in predictions])
    score = float(np.mean([prediction.score for prediction in predictions]))
    return Overlap(PixelCounts.of(predicted, union, ignore), score)
