"""Seg-Zero's reward for one object, "strict" (arXiv 2503.06520, section 3.4, and its code).

    R = think + format + box_iou + box_l1 + points        each 0 or 1

No mask is compared, so training needs no segmenter. Each term ends at 0 on any error, independently of the others, and
reads the first `{…}` without an inner `}` anywhere in the response: that is the published rule, kept to the letter, not
the strict parser of samr1_verl/answers.py, whose verdict the flags `answer/<reason>` tell. In a recipe:

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
from reward_fns.boxes import MALFORMED, inclusive_iou
from reward_fns.terms import think
from samr1_verl.rows.ground_truth import RowError
from samr1_verl.scoring.rollout import Rollout, read_rollout

WEIGHTS = {"think": 1.0, "format": 1.0, "box_iou": 1.0, "box_l1": 1.0, "points": 1.0}  # the paper sums them


@dataclass(frozen=True)
class Constants:
    """The reward's thresholds, from its code; pixels of the image the policy saw, 840 x 840."""

    box_iou: float = 0.5  # strictly above
    box_l1: float = 10.0  # mean over the four coordinates, strictly below
    points: float = 100.0  # mean distance of the two points under the better pairing, strictly below


CONSTANTS = Constants()
ARGUMENTS = ArgumentReader(WEIGHTS)


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
        segmenter: the recipe's `samr1.segmenter`, for terms that compare masks.
        reward: the recipe's `samr1.reward`: `terms` and `caps`; None: the reward's own values.
        verls_own: `reward_router_address` and `reward_model_tokenizer`, which verl adds beside a reward model.

    Returns:
        `score`; the five components and every further term before their weights; `acc`, the IoU of the boxes; the flags
        `answer/<reason>`.

    Raises:
        ConfigError: a keyword argument is wrong.
        RowError: ground_truth or extra_info cannot be used: not one box, or fewer than two points.
        ImageError, SegmenterError: with terms that compare masks, as in `reward_fns.samr1`.
    """
    arguments = ARGUMENTS(reward, segmenter, verls_own)
    rollout = read_rollout(data_source, solution_str, ground_truth, extra_info, arguments.caps)
    components, iou = components_of(rollout)
    return await arguments.score(rollout, components, segmenter, acc=iou)


def components_of(rollout: Rollout) -> tuple[dict[str, float], float]:
    """The five terms by name, and the IoU of the boxes in [0, 1]. Raises RowError."""
    if len(rollout.truth.boxes) != 1:
        raise RowError(
            f"{rollout.label}: ground_truth.boxes holds {len(rollout.truth.boxes)} boxes, expected 1: Seg-Zero's reward "
            "is for one object. Leave the row out, or train with +recipe=vision_reasoner"
        )
    true_boxes, true_points = rollout.true_boxes(), rollout.true_points(2)[0]
    iou = _term(lambda: float(inclusive_iou(_box(rollout)[None], true_boxes)[0, 0]))
    components = {
        "think": think(rollout),
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
    """The JSON value of the first `{…}` with no `}` inside: what the expression `{[^}]+}` finds, in linear time.

    Raises:
        ValueError, RecursionError: there is none, or it is no JSON.
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
    """The answer's box in pixels, [4]. Raises one of MALFORMED where it is not four numbers."""
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
    # The published code cuts coordinates with int(), which also reads strings of digits.
    cut = [[int(value[key][0]), int(value[key][1])] for key in ("points_1", "points_2")]
    points, box = rollout.pixels(np.array(cut, dtype=np.float64)), _box(rollout)
    if not ((points >= box[:2]) & (points <= box[2:])).all():
        return False
    straight, crossed = (sum(map(math.dist, points, order)) for order in (true_points, true_points[::-1]))
    return min(straight, crossed) / 2 < CONSTANTS.points
