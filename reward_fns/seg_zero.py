"""Seg-Zero's reward for one object in its version "strict" (arXiv 2503.06520, section 3.4, and its code).

    R = think + format + box_iou + box_l1 + points        each 0 or 1

No mask is compared, so training needs no segmenter. As in the published code, each term reads the first `{…}` without
an inner `}` anywhere in the response, and each term by itself is 0 after any error. The flags `answer/<reason>` are the
result of the strict parser (samr1_verl/answers.py), which the terms do not use. In a recipe:

    reward.custom_reward_function:
      path: pkg://reward_fns.seg_zero
      name: compute_score
      reward_kwargs: {segmenter: "${samr1.segmenter}", reward: "${samr1.reward}"}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward_fns.arguments import ArgumentReader
from reward_fns.boxes import MALFORMED, seg_zero_iou
from samr1_verl.rows.ground_truth import RowError
from samr1_verl.scoring.rollout import Rollout, read_rollout

WEIGHTS = {"think": 1.0, "format": 1.0, "box_iou": 1.0, "box_l1": 1.0, "points": 1.0}  # the paper sums them


@dataclass(frozen=True)
class Constants:
    """The reward's thresholds, from its code, in pixels of the resized image that the policy saw, 840 x 840."""

    box_iou: float = 0.5  # the IoU must be above
    box_l1: float = 10.0  # the mean over the four coordinates must be below
    points: float = 100.0  # the mean distance of the two points, in the better order, must be below


CONSTANTS = Constants()
ARGUMENTS = ArgumentReader(WEIGHTS, reads=["strict"])


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
        data_source, solution_str, ground_truth, extra_info: as in `reward_fns.samr1.compute_score`; the row has one box
            with two points, and needs neither masks nor an image.
        segmenter: the recipe's `samr1.segmenter`; needed for terms that compare masks.
        reward: the recipe's `samr1.reward`: `terms`, `caps` and `strict`; None: the reward's own values.
        verls_own: `reward_router_address` and `reward_model_tokenizer`, which verl adds where it has a reward model.

    Returns:
        All floats: `score`; the five components and every further term before their weights; `acc`, the IoU of the
        boxes; the flags `answer/<reason>`.

    Raises:
        ConfigError: a keyword argument is invalid.
        RowError: ground_truth or extra_info is invalid, or the row does not have one box with two points.
        ImageError, SegmenterError: with terms that compare masks, as in `reward_fns.samr1`.
    """
    arguments = ARGUMENTS(reward, segmenter, verls_own)
    rollout = read_rollout(data_source, solution_str, ground_truth, extra_info, arguments.caps)
    components, iou = components_of(arguments.graded(rollout))
    components["think"] = arguments.think(rollout)
    return await arguments.score(rollout, components, segmenter, acc=iou)


def components_of(rollout: Rollout) -> tuple[dict[str, float], float]:
    """The components except `think` by name, and the IoU of the boxes in [0, 1].

    Raises:
        RowError: the row does not have one box with two points.
    """
    if len(rollout.truth.boxes) != 1:
        raise RowError(
            "not_one_box",
            f"{rollout.label}: ground_truth.boxes",
            f"holds {len(rollout.truth.boxes)} boxes, expected 1: Seg-Zero's reward is for one object. Leave the row "
            "out, or train with +recipe=vision_reasoner",
        )
    true_boxes, true_points = rollout.true_boxes(), rollout.true_points(2)[0]
    iou = _term(lambda: float(seg_zero_iou(_box(rollout)[None], true_boxes)[0, 0]))
    components = {
        "format": _term(lambda: _format(rollout.text)),
        "box_iou": float(iou > CONSTANTS.box_iou),
        "box_l1": _term(lambda: np.abs(_box(rollout) - true_boxes[0]).mean() < CONSTANTS.box_l1),
        "points": _term(lambda: _points(rollout, true_points)),
    }
    return components, min(1.0, max(0.0, iou))


def _term(rule: Callable[[], float]) -> float:
    try:
        with np.errstate(all="ignore"):
            value = float(rule())
    except MALFORMED:
        return 0.0
    return 0.0 if math.isnan(value) else value


def first_object(text: str) -> Any:
    """The JSON value of the first `{…}` without an inner `}`: the first match of `{[^}]+}`, in linear time.

    Raises:
        ValueError, RecursionError: there is no such text, or it is not JSON.
    """
    start = text.index("{")
    end = text.index("}", start)
    while end == start + 1:  # an empty pair of braces
        start = text.index("{", end)
        end = text.index("}", start)
    return json.loads(text[start : end + 1])


def _format(text: str) -> bool:
    value = first_object(text)
    sizes = (("bbox", 4), ("points_1", 2), ("points_2", 2))
    return all(isinstance(value[key], list) and len(value[key]) == size for key, size in sizes)


def _box(rollout: Rollout) -> np.ndarray:
    """The answer's box, [4] float64, in pixels of the resized image. Raises one of MALFORMED for other values."""
    numbers = first_object(rollout.text)["bbox"]
    if (
        not isinstance(numbers, list)
        or len(numbers) != 4
        or not all(isinstance(number, int | float) for number in numbers)
    ):
        raise TypeError(numbers)
    return rollout.pixels(np.array([float(number) for number in numbers]))


def _points(rollout: Rollout, true_points: np.ndarray) -> bool:
    value = first_object(rollout.text)
    # The published code truncates coordinates with int(), which also reads strings of digits.
    truncated = [[int(value[key][0]), int(value[key][1])] for key in ("points_1", "points_2")]
    points, box = rollout.pixels(np.array(truncated, dtype=np.float64)), _box(rollout)
    if not ((points >= box[:2]) & (points <= box[2:])).all():
        return False
    straight, crossed = (sum(map(math.dist, points, order)) for order in (true_points, true_points[::-1]))
    return min(straight, crossed) / 2 < CONSTANTS.points
