"""StAR's reward for many objects: finer tiers of mask IoU, matched together with boxes and points (arXiv 2603.14382).

    R = think (1) + format (2) + mask (5) + box_iou (1) + box_l1 (1) + point (1) + count (1) + non_repetition (1)

The answer is a JSON list of {"label": "…", "bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}. One mask per object is
compared with every true mask. The matching maximises the weighted sum of mask, box_iou, box_l1 and point. Each of them
is the sum over matched objects divided by the larger number of objects. The paper's second stage trains on masks alone,
with the weights {mask: 2, box_iou: 0, box_l1: 0, point: 0, count: 0}. In a recipe:

    reward.custom_reward_function:
      path: pkg://reward_fns.star
      name: compute_score
      reward_kwargs: {segmenter: "${samr1.segmenter}", reward: "${samr1.reward}"}

On a row without an object the answer `[]` earns every component in full (unpublished); StAR's rows all have objects.
An object with an inverted box or with a point outside the image has an empty mask; StAR's code would reorder and clamp
its coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from reward_fns.arguments import ArgumentReader, Arguments
from reward_fns.boxes import CONSTANTS as BOXES
from reward_fns.boxes import Pairs, best_matching, format_of, objects_of, pairs_of
from reward_fns.terms import no_target, non_repetition
from samr1_verl.geometry.masks import MaskError, coco_rle, decode_rle
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import RowError
from samr1_verl.scoring.rollout import Rollout, image_of, read_rollout, segment, within_image

PAIR_TERMS = ("mask", "box_iou", "box_l1", "point")  # terms over matched objects
WEIGHTS = dict.fromkeys(("think", "format", *PAIR_TERMS, "count", "non_repetition"), 1.0)  # first stage, from its code


@dataclass(frozen=True)
class Constants:
    """The reward's constants, from its code; the thresholds of boxes and points are in reward_fns/boxes.py."""

    # (IoU, score): a mask IoU above the first number scores the second.
    tiers: tuple[tuple[float, float], ...] = ((0.9, 5.0), (0.8, 4.0), (0.7, 3.0), (0.5, 2.0), (0.3, 1.0))
    box: float = 2 / 3  # format score of a list of 4 under bbox_2d
    point: float = 2 / 3  # format score of a list of 2 under point_2d
    label: float = 2 / 3  # format score of a string under label that is not blank


CONSTANTS = Constants()
ARGUMENTS = ArgumentReader(WEIGHTS, reads=["thresholds", "strict"], masks=True)


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any],
    *,
    segmenter: Any = None,
    reward: Mapping[str, Any] | None = None,
    **verls_own: Any,
) -> dict[str, float]:
    """Score one response.

    Args:
        data_source, solution_str, ground_truth, extra_info: as in `reward_fns.samr1.compute_score`; the row has a mask,
            a box and at least one point per object. Where the row has no object, the terms over matched objects are 0,
            except for the answer `[]`.
        segmenter: the recipe's `samr1.segmenter`.
        reward: the recipe's `samr1.reward`: `thresholds`, the tiers of mask IoU, `terms`, `caps` and `strict`; None:
            StAR's own values.
        verls_own: `reward_router_address` and `reward_model_tokenizer`, which verl adds where it has a reward model.

    Returns:
        All floats: `score`; the components and every further term before their weights; `acc`, the sum of the IoUs of
        matched masks divided by the larger number of objects; the flags `answer/<reason>`.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
    """
    arguments = ARGUMENTS(reward, segmenter, verls_own)
    rollout = read_rollout(data_source, solution_str, ground_truth, extra_info, arguments.caps)
    graded = arguments.graded(rollout)
    matched = await _matched(graded, arguments, segmenter)
    parts = (CONSTANTS.box, CONSTANTS.point, CONSTANTS.label)
    components = {
        "think": arguments.think(rollout),
        "format": format_of(graded.text, *parts) if not no_target(rollout) else sum(parts),
        **{name: matched[name] for name in (*PAIR_TERMS, "count")},
        "non_repetition": non_repetition(rollout),
    }
    return await arguments.score(rollout, components, segmenter, acc=matched["acc"])


async def _matched(rollout: Rollout, arguments: Arguments, segmenter: Any) -> dict[str, float]:
    """`mask`, `box_iou`, `box_l1`, `point`, `count` and `acc` of the best matching; all 0 for an unreadable answer."""
    image_of(rollout)  # a row without an image is an error for every answer
    tiers = arguments.config.tiers or CONSTANTS.tiers
    if no_target(rollout):
        return {**dict.fromkeys((*PAIR_TERMS, "count", "acc"), 1.0), "mask": max(score for _, score in tiers)}
    pairs, truth = pairs_of(rollout), _true_masks(rollout)
    if pairs is None:
        return dict.fromkeys((*PAIR_TERMS, "count", "acc"), 0.0)
    iou = mask_iou(_counted(rollout, await _predicted_masks(rollout, segmenter)), truth)
    values = _pair_values(pairs, iou, tiers)
    matched = best_matching(np.sum([arguments.weights[name] * values[name] for name in PAIR_TERMS], axis=0))
    sums = {name: float(value[matched].sum()) / pairs.larger for name, value in (values | {"acc": iou}).items()}
    return sums | {"count": float(iou.shape[0] == iou.shape[1])}


def _pair_values(pairs: Pairs, iou: np.ndarray, tiers: Sequence[tuple[float, float]]) -> dict[str, np.ndarray]:
    """PAIR_TERMS by name, float64 [M, N] each."""
    mask = np.zeros_like(iou)
    for threshold, value in sorted(tiers):
        mask[iou > threshold] = value
    return {"mask": mask, "box_iou": pairs.box_iou, "box_l1": pairs.box_l1, "point": pairs.point}


async def _predicted_masks(rollout: Rollout, segmenter: Any) -> list[np.ndarray]:
    """One mask per object of the answer, HxW bool in the original frame; empty where the object is no valid prompt."""
    objects_policy = [_prompt(rollout, box, point) for box, point in zip(*objects_of(rollout.text), strict=True)]
    masks = iter(await segment(rollout, [prompt for prompt in objects_policy if prompt is not None], segmenter))
    return [np.zeros(rollout.truth.size, dtype=bool) if prompt is None else next(masks) for prompt in objects_policy]


def _prompt(rollout: Rollout, box: np.ndarray, point: np.ndarray) -> Prompt | None:
    x1, y1, x2, y2 = box.tolist()
    x, y = point.tolist()
    if not (np.isfinite(box).all() and np.isfinite(point).all() and x1 < x2 and y1 < y2):
        return None
    return within_image(rollout, Prompt((x1, y1, x2, y2), ((x, y),), (1,)))


def _true_masks(rollout: Rollout) -> list[dict[str, Any]]:
    """The first 120 true masks in pycocotools' RLE, without the pixels that do not count.

    Raises:
        RowError: the row does not have one mask per box, or a mask does not decode.
    """
    truth = rollout.truth
    if len(truth.masks) != len(truth.boxes):
        raise RowError(
            "mask_count_differs",
            f"{rollout.label}: ground_truth.masks",
            f"holds {len(truth.masks)} masks for {len(truth.boxes)} boxes: this reward compares one mask per object. "
            "Prepare the data again",
        )
    try:
        if truth.ignore is None:
            return [coco_rle(counts, truth.size) for counts in truth.masks[: BOXES.objects]]
        masks = [decode_rle(counts, truth.size) for counts in truth.masks[: BOXES.objects]]
        return _counted(rollout, masks)
    except MaskError as error:
        raise RowError(
            "broken_mask", f"{rollout.label}: ground_truth.masks or ignore", f"{error}. Prepare the data again"
        ) from error


def _counted(rollout: Rollout, masks: list[np.ndarray]) -> list[dict[str, Any]]:
    """Masks, HxW bool, in pycocotools' RLE, without the pixels that do not count."""
    ignore = rollout.truth.ignore
    counts = None if ignore is None else ~decode_rle(ignore, rollout.truth.size)
    counted = (mask if counts is None else mask & counts for mask in masks)
    return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in counted]


def mask_iou(predicted: list[dict[str, Any]], target: list[dict[str, Any]]) -> np.ndarray:
    """IoU, [M, N] float64, of M with N masks in pycocotools' RLE; 0 where both masks are empty."""
    iou = coco_mask.iou(predicted, target, [0] * len(target))
    return np.nan_to_num(np.asarray(iou, dtype=np.float64))
