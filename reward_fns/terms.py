"""Terms that every reward of this folder accepts by name and weight: `samr1.reward.terms: {s_measure: 0.3}`.

A term is a pure function of one response and its row, in [0, 1]. Its weight multiplies it in the score; with weight 0
it is only logged. Terms that compare masks are 0 where the answer is unusable or its mask has no pixel of the target.
The other terms do not check whether the answer is correct, except `no_target`, which compares it with the row.

On a row without an object the answer `[]` is right. There it earns 1 in `format`, in `point_count`, and in the terms
that compare masks, so that an invented object never earns as much (unpublished).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from samr1_verl.answers import Answer, Reason, Unusable, has_think_format, thinking
from samr1_verl.scoring.rollout import Rollout


@dataclass(frozen=True)
class Constants:
    """Constants of the terms, with their sources."""

    points: int = 2  # SocioReasoner: number of points that scores 1
    points_width: float = 2.0  # SocioReasoner: standard deviation of the bell curve around that number
    words: int = 96  # unpublished: PixelThink's budget for easy samples is in tokens, which a reward does not get
    words_slope: float = 1 / 500  # unpublished: loss per word above the budget
    repeats: int = 2  # VisionReasoner: number of repeated sentences from which the score is 0
    structure_objects: float = 0.5  # S-measure, Fan et al. 2017, equation 3: alpha, the share of the object-aware part
    boundary: float = 0.02  # boundary IoU, Cheng et al. 2021, section 4: width of the boundary / image diagonal


CONSTANTS = Constants()


def think(rollout: Rollout) -> float:
    """1 where the response is `<think>…</think><answer>…</answer>`, else 0 (Seg-Zero, SAM-R1, VisionReasoner)."""
    return float(has_think_format(rollout.text))


def reasons(rollout: Rollout) -> float:
    """`think` with a thinking that is not blank (unpublished)."""
    return float(bool((thinking(rollout.text) or "").strip()))


def usable(rollout: Rollout) -> float:
    """1 where the answer's box and points are valid and lie in the image, else 0 (SAM-R1's format).

    Also 1 for the right answer `[]` (unpublished).
    """
    return float(isinstance(rollout.answer, Answer) or no_target(rollout))


def point_count(rollout: Rollout) -> float:
    """Mean over objects of exp(-(n-2)²/(2·2²)), n points; 0 for an unusable answer (SocioReasoner)."""
    if isinstance(rollout.answer, Unusable):
        return no_target(rollout)
    off = np.array([len(target.points) - CONSTANTS.points for target in rollout.answer.objects_policy])
    return float(np.exp(-(off**2) / (2 * CONSTANTS.points_width**2)).mean())


def length(rollout: Rollout) -> float:
    """1 up to a number of words of reasoning, then falling linearly to 0 (after PixelThink and DR²Seg).

    0 where the reasoning format is not kept, so that a response without reasoning does not count as short reasoning.
    """
    reasoning = thinking(rollout.text)
    if reasoning is None:
        return 0.0
    beyond = len(reasoning.split()) - CONSTANTS.words
    return min(1.0, max(0.0, 1.0 - CONSTANTS.words_slope * beyond))


def non_repetition(rollout: Rollout) -> float:
    """0 where two or more sentences of the response are repetitions, else 1 (VisionReasoner).

    Sentences are the parts between full stops without surrounding space; empty parts do not count.
    """
    sentences = [sentence.strip() for sentence in rollout.text.split(".")]
    sentences = [sentence for sentence in sentences if sentence]
    return float(len(sentences) - len(set(sentences)) < CONSTANTS.repeats)


def no_target(rollout: Rollout) -> float:
    """1 where the row has no object and the answer is an empty list, which says so, else 0 (Think2Seg-RS)."""
    refused = isinstance(rollout.answer, Unusable) and rollout.answer.reason is Reason.NO_TARGET
    return float(refused and not rollout.truth.masks and not rollout.truth.boxes)


def mask_iou(rollout: Rollout) -> float:
    """IoU of predicted and true mask (Think2Seg-RS, SocioReasoner); where both are empty, 1 for `[]` and else 0."""
    predicted, target = _masks(rollout)
    return no_target(rollout) or _iou(predicted, target)


def s_measure(rollout: Rollout) -> float:
    """Structure measure of the predicted mask (Fan et al. 2017, equations 2 to 7; its weight in Seg-R1 is 0.3)."""
    predicted, target = _masks(rollout)
    if not (predicted & target).any():
        return no_target(rollout)
    if target.all():
        return float(predicted.mean())
    share = CONSTANTS.structure_objects
    return max(0.0, share * _object_similarity(predicted, target) + (1 - share) * _region_similarity(predicted, target))


def boundary_iou(rollout: Rollout) -> float:
    """IoU of the masks' pixels within 2 % of the image diagonal of their contours (Cheng et al. 2021, equation 2)."""
    predicted, target = _masks(rollout)
    width = max(1, round(CONSTANTS.boundary * math.hypot(*target.shape)))
    return no_target(rollout) or _iou(_boundary(predicted, width), _boundary(target, width))


@dataclass(frozen=True)
class Term:
    """A term's function, and whether it compares masks."""

    function: Callable[[Rollout], float]
    compares_masks: bool = False


TERMS: dict[str, Term] = {
    "think": Term(reasons),
    "format": Term(usable),
    "point_count": Term(point_count),
    "length": Term(length),
    "non_repetition": Term(non_repetition),
    "no_target": Term(no_target),
    "mask_iou": Term(mask_iou, compares_masks=True),
    "s_measure": Term(s_measure, compares_masks=True),
    "boundary_iou": Term(boundary_iou, compares_masks=True),
}


def weigh(rollout: Rollout, components: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """`score`, the weighted sum; every component and term by name, before its weight; the flags; all floats."""
    values = {name: components[name] if name in components else TERMS[name].function(rollout) for name in weights}
    score = math.fsum(weights[name] * value for name, value in values.items())
    return {"score": score, **values, **rollout.flags}


def _masks(rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
    if rollout.masks is None:
        raise ValueError("the rollout has no masks, which this term compares: call rollout.with_masks first")
    return rollout.masks.predicted, rollout.masks.target


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 0.0


def _boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask, HxW bool, within `width` pixels of its contour, to which the image's border belongs."""
    side = 2 * width + 1  # one erosion by a square of this side equals `width` erosions by 3x3
    eroded = ndimage.minimum_filter(mask.astype(np.uint8), size=side, mode="constant", cval=0)
    return mask & (eroded == 0)


def _object_similarity(predicted: np.ndarray, target: np.ndarray) -> float:
    """S_o: the evenness of the prediction inside and outside the target, weighted by their shares of the image."""
    share = float(target.mean())
    return share * _evenness(predicted[target]) + (1 - share) * _evenness(~predicted[~target])


def _evenness(hits: np.ndarray) -> float:
    """2x / (x² + 1 + s) with mean x and sample standard deviation s of `hits`; equation 5 with lambda = 1/2."""
    mean = float(hits.mean())
    deviation = math.sqrt(mean * (1 - mean) * hits.size / (hits.size - 1)) if hits.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation)


def _region_similarity(predicted: np.ndarray, target: np.ndarray) -> float:
    """S_r: the SSIM of the four regions around the target's centroid, weighted by their share of the image."""
    row, column = (_middle(target.sum(axis=axis)) + 1 for axis in (1, 0))
    total = 0.0
    for rows in (slice(None, row), slice(row, None)):
        for columns in (slice(None, column), slice(column, None)):
            if (part := target[rows, columns]).size:
                total += part.size / target.size * _ssim(predicted[rows, columns], part)
    return total


def _middle(counts: np.ndarray) -> int:
    """The mean position of pixels along an axis, rounded. `counts`: number of pixels per position."""
    return round(float(counts @ np.arange(len(counts))) / float(counts.sum()))


def _ssim(predicted: np.ndarray, target: np.ndarray) -> float:
    """SSIM of two binary regions from means, variances and covariance, without the stabilising constants."""
    x, y, n = float(predicted.mean()), float(target.mean()), target.size
    correction = n / (n - 1) if n > 1 else 0.0
    variances = (x * (1 - x) + y * (1 - y)) * correction
    covariance = (float((predicted & target).mean()) - x * y) * correction
    numerator, denominator = 4 * x * y * covariance, (x**2 + y**2) * variances
    if numerator != 0:
        return numerator / denominator
    return float(denominator == 0)
