"""StAR's reward for many objects: finer tiers of mask IoU in one matching with boxes and points (arXiv 2603.14382).

    R = think (1) + format (2) + mask (5) + box_iou (1) + box_l1 (1) + point (1) + count (1) + non_repetition (1)

The answer is a JSON list of {"label": "…", "bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}. One mask an object is
compared with every true mask; the matching maximises the weighted sum of mask, box_iou, box_l1 and point, and each is
divided by the larger number of objects. The paper's second stage trains on masks alone, with the weights
{mask: 2, box_iou: 0, box_l1: 0, point: 0, count: 0}. In a recipe:

    reward.custom_reward_function:
      path: pkg://reward_fns.star
      name: compute_score
      reward_kwargs: {segmenter: "${samr1.segmenter}", service: "${samr1.service}"}

An object that is no prompt in its image (inverted box, point off the image) has an empty mask; StAR's code would
reorder and clamp its coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from reward_fns.boxes import CONSTANTS as BOXES
from reward_fns.boxes import Pairs, best_matching, format_of, objects_of, pairs_of
from samr1_verl.scoring.rollout import Rollout, check_keywords, image_of, read_rollout, segment, within_image
from reward_fns.terms import non_repetition, segmenter_of, think, weigh, weights_of, with_asked_masks
from samr1_verl.answers import MAX_POINTS, Target
from samr1_verl.rows.ground_truth import RowError
from samr1_verl.geometry.masks import MaskError, coco_rle, decode_rle

PAIR_TERMS = ("mask", "box_iou", "box_l1", "point")  # matched with their weights
WEIGHTS = dict.fromkeys(("think", "format", *PAIR_TERMS, "count", "non_repetition"), 1.0)  # the first stage's, its code
FORMAT_TERMS = ("think", "format", "count", "non_repetition")  # what an answer can earn without a correct object


@dataclass(frozen=True)
class Constants:
    """The reward's constants, from its code; the thresholds of boxes and points are in reward_fns/boxes.py."""

    tiers: tuple[tuple[float, float], ...] = ((0.9, 5.0), (0.8, 4.0), (0.7, 3.0), (0.5, 2.0), (0.3, 1.0))  # IoU above
    box: float = 2 / 3  # a list of 4 under bbox_2d
    point: float = 2 / 3  # a list of 2 under point_2d
    label: float = 2 / 3  # a string under label that is not blank


CONSTANTS = Constants()


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any],
    *,
    segmenter: Mapping[str, Any] | None = None,
    service: Mapping[str, Any] | None = None,
    terms: Mapping[str, float] | None = None,
    **verls_own: Any,
) -> dict[str, float]:
    """Score one response.

    Args:
        data_source, solution_str, ground_truth, extra_info: as in `reward_fns.samr1.compute_score`; the row has a mask,
            a box and at least one point an object. What is matched is 0 where it means none.
        segmenter, service: the recipe's `samr1.segmenter` and `samr1.service`.
        terms: further terms of reward_fns/terms.py by name and weight, or other weights for the reward's own.
        verls_own: what verl adds beside a reward model.

    Returns:
        `score`; the components and every further term before their weights; `acc`, the summed IoU of matched masks over
        the larger number of objects; the flags `answer/<reason>`.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
    """
    check_keywords(verls_own, "segmenter", "service", "terms")
    weights = weights_of(terms, WEIGHTS)
    segmenter, service = segmenter_of("this reward", segmenter, service)
    rollout = read_rollout(data_source, solution_str, ground_truth, extra_info, MAX_POINTS, BOXES.objects)
    matched = await _matched(rollout, weights, segmenter, service)
    components = {
        "think": think(rollout),
        "format": format_of(rollout.text, CONSTANTS.box, CONSTANTS.point, CONSTANTS.label),
        **{name: matched[name] for name in (*PAIR_TERMS, "count")},
        "non_repetition": non_repetition(rollout),
    }
    rollout = await with_asked_masks(rollout, weights, WEIGHTS, segmenter, service)
    return {"acc": matched["acc"], **weigh(rollout, components, weights)}


async def _matched(rollout: Rollout, weights: Mapping[str, float], segmenter: Any, service: Any) -> dict[str, float]:
    """`mask`, `box_iou`, `box_l1`, `point`, `count` and `acc` of the best matching; all 0 for an unreadable answer."""
    image_of(rollout)  # a row without an image is an error whatever the answer is
    pairs, truth = pairs_of(rollout), _true_masks(rollout)
    if pairs is None:
        return dict.fromkeys((*PAIR_TERMS, "count", "acc"), 0.0)
    iou = mask_iou(_counted(rollout, await _predicted_masks(rollout, segmenter, service)), truth)
    values = _pair_values(pairs, iou)
    at = best_matching(np.sum([weights[name] * values[name] for name in PAIR_TERMS], axis=0))
    sums = {name: float(value[at].sum()) / pairs.larger for name, value in (values | {"acc": iou}).items()}
    return sums | {"count": float(iou.shape[0] == iou.shape[1])}


def _pair_values(pairs: Pairs, iou: np.ndarray) -> dict[str, np.ndarray]:
    tiers = np.zeros_like(iou)
    for threshold, value in sorted(CONSTANTS.tiers):
        tiers[iou > threshold] = value
    return {"mask": tiers, "box_iou": pairs.box_iou, "box_l1": pairs.box_l1, "point": pairs.point}


async def _predicted_masks(rollout: Rollout, segmenter: Any, service: Any) -> list[np.ndarray]:
    """One mask an object of the answer, HxW bool, original frame, empty where it is no prompt in the image."""
    targets = [_target(rollout, *one) for one in zip(*objects_of(rollout.text), strict=True)]
    found = iter(await segment(rollout, [one for one in targets if one is not None], segmenter, service))
    return [np.zeros(rollout.truth.size, dtype=bool) if one is None else next(found) for one in targets]


def _target(rollout: Rollout, box: np.ndarray, point: np.ndarray) -> Target | None:
    x1, y1, x2, y2 = box.tolist()
    x, y = point.tolist()
    if not (np.isfinite(box).all() and np.isfinite(point).all() and x1 < x2 and y1 < y2):
        return None
    return within_image(rollout, Target((x1, y1, x2, y2), ((x, y),), (1,)))


def _true_masks(rollout: Rollout) -> list[dict[str, Any]]:
    """The first 120 true masks as pycocotools' RLE, without the pixels that do not count. Raises RowError."""
    truth = rollout.truth
    if len(truth.masks) != len(truth.boxes):
        raise RowError(
            f"{rollout.row}: ground_truth.masks holds {len(truth.masks)} masks for {len(truth.boxes)} boxes: this "
            "reward compares one mask an object. Prepare the data again"
        )
    try:
        if truth.ignore is None:
            return [coco_rle(counts, truth.size) for counts in truth.masks[: BOXES.objects]]
        masks = [decode_rle(counts, truth.size) for counts in truth.masks[: BOXES.objects]]
        return _counted(rollout, masks)
    except MaskError as error:
        raise RowError(f"{rollout.row}: ground_truth.masks or ignore: {error}. Prepare the data again") from error


def _counted(rollout: Rollout, masks: list[np.ndarray]) -> list[dict[str, Any]]:
    """Masks, HxW bool, as pycocotools' RLE without the pixels that do not count."""
    ignore = rollout.truth.ignore
    counts = None if ignore is None else ~decode_rle(ignore, rollout.truth.size)
    counted = (mask if counts is None else mask & counts for mask in masks)
    return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in counted]


def mask_iou(predicted: list[dict[str, Any]], target: list[dict[str, Any]]) -> np.ndarray:
    """IoU [M, N] of M masks with N others, as pycocotools' RLE; 0 where both are empty."""
    iou = coco_mask.iou(predicted, target, [0] * len(target))
    return np.nan_to_num(np.asarray(iou, dtype=np.float64))
