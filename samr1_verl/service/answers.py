"""Checks of a service's answers, for every client: what no segmenter can answer is a fault, and never a score.

A service is another process, often on another machine. It may be the wrong one, an old one, or broken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from samr1_verl.geometry.masks import MaskError, decode_rle
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters.base import Prediction
from samr1_verl.service.retry import TransientError
from samr1_verl.service.wire import WirePrediction

# Maximum number of pixels of all masks of an answer about an image that this process cannot read: 512 MB of bool.
MASK_PIXELS = 1 << 29


class WrongAnswerError(TransientError):
    """An answer that no segmenter gives to this request. Another address, or another attempt, may do better."""


def sound_overlap(overlap: Any, truth: GroundTruth) -> Overlap:
    """The overlap, where it is one of masks of `truth.size` with `truth`.

    Raises:
        WrongAnswerError: with I, U, the ignored pixels G, and those of them that are predicted, P, not 0 <= I <= U,
            U + G <= H·W, 0 <= P <= G; a count or score is no number; U is 0 although `truth` has pixels.
        MaskError: a true mask does not decode. Checked only where U is 0.
    """
    if not isinstance(overlap, Overlap):
        raise WrongAnswerError(f"the answer is {str(overlap)[:100]}, expected an overlap")
    pixels, area = overlap.pixels, truth.size[0] * truth.size[1]
    ordered = 0 <= pixels.intersection <= pixels.union <= area - pixels.ignored
    if not (ordered and 0 <= pixels.ignored_predicted <= pixels.ignored and math.isfinite(overlap.score)):
        raise WrongAnswerError(
            f"the answer is {overlap}, which is impossible for an image of {truth.size[0]}x{truth.size[1]} (HxW)"
        )
    if (pixels.ignored or pixels.ignored_predicted) and truth.ignore is None:
        raise WrongAnswerError(f"the answer has {pixels.ignored} ignored pixels, the row has none")
    if not pixels.union and truth.masks:
        union, ignore = truth.union_and_ignore()
        if (union if ignore is None else union & ~ignore).any():
            raise WrongAnswerError("the answer's union is empty, although the true masks have pixels")
    return overlap


def sound_predictions(predictions: Any, count: int) -> list[Prediction]:
    """The predictions, where they are those of `count` prompts about one image.

    Raises:
        WrongAnswerError: another number of predictions, masks that are not HxW bool of one size, or a score that is no
            number.
    """
    if not isinstance(predictions, list) or len(predictions) != count:
        raise WrongAnswerError(f"the answer is {str(predictions)[:100]}, expected the masks of {count} prompts")
    for prediction in predictions:
        mask = prediction.mask
        if mask.dtype != np.bool_ or mask.ndim != 2 or mask.shape != predictions[0].mask.shape:
            raise WrongAnswerError(f"a mask of {mask.dtype}, {mask.shape}, expected bool, {predictions[0].mask.shape}")
        if not math.isfinite(prediction.score):
            raise WrongAnswerError(f"a mask with the score {prediction.score}")
    return predictions


def decoded(
    predictions: Sequence[WirePrediction], answered: tuple[int, int], size: tuple[int, int] | None, count: int
) -> list[Prediction]:
    """The predictions of an answer. Number and size are checked before memory is taken for the masks.

    Args:
        predictions: with their masks as RLE.
        answered: (H, W) of the image, as the answer says.
        size: (H, W) of the image; None: this process cannot read it.
        count: number of prompts.

    Raises:
        WrongAnswerError: another number of masks, another size, or a mask that does not decode to H·W pixels; with
            `size` None: more than MASK_PIXELS in all masks together.
    """
    if len(predictions) != count:
        raise WrongAnswerError(f"{len(predictions)} masks for {count} prompts")
    height, width = answered
    if size is not None and answered != size:
        raise WrongAnswerError(f"the answer is for {height}x{width} pixels (HxW), the image has {size[0]}x{size[1]}")
    if size is None and count * height * width > MASK_PIXELS:
        raise WrongAnswerError(f"{count} masks of {height}x{width} pixels, the limit is {MASK_PIXELS} pixels together")
    if any(len(wire.mask) > height * width + 16 for wire in predictions):  # a run has at least one pixel
        raise WrongAnswerError(f"a mask with more runs than {height}x{width} pixels")
    try:
        return [Prediction(decode_rle(wire.mask, answered), wire.score) for wire in predictions]
    except MaskError as error:
        raise WrongAnswerError(f"a mask of the answer: {error}") from error
