"""VisionReasoner's reward for many objects (arXiv 2505.12081, section 3.3, and its code).

    R = think (1) + format (2) + accuracy (3) + non_repetition (1)

The answer is a JSON list of {"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}. No mask is compared, so training needs
no segmenter. The terms follow the published code exactly. The flags `answer/<reason>` are the result of the strict
parser (samr1_verl/answers.py), which the terms do not use. In a recipe:

    reward.custom_reward_function:
      path: pkg://reward_fns.vision_reasoner
      name: compute_score
      reward_kwargs: {segmenter: "${samr1.segmenter}", reward: "${samr1.reward}"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reward_fns.arguments import ArgumentReader
from reward_fns.boxes import best_matching, format_of, pairs_of
from reward_fns.terms import no_target, non_repetition
from samr1_verl.scoring.rollout import Rollout, read_rollout

WEIGHTS = {"think": 1.0, "format": 1.0, "accuracy": 1.0, "non_repetition": 1.0}  # the paper sums them


@dataclass(frozen=True)
class Constants:
    """The reward's constants, from its code; the thresholds of a pair are in reward_fns/boxes.py."""

    box: float = 1.0  # format score of a list of 4 under bbox_2d
    point: float = 1.0  # format score of a list of 2 under point_2d


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
        data_source, solution_str, ground_truth, extra_info: as in `reward_fns.samr1.compute_score`; the row has a box
            and at least one point per object, and needs neither masks nor an image. Accuracy is 0 where the row has no
            object.
        segmenter: the recipe's `samr1.segmenter`; needed for terms that compare masks.
        reward: the recipe's `samr1.reward`: `terms`, `caps` and `strict`; None: the reward's own values.
        verls_own: `reward_router_address` and `reward_model_tokenizer`, which verl adds where it has a reward model.

    Returns:
        All floats: `score`; the four components and every further term before their weights; `acc`, the sum of the IoUs
        of matched boxes divided by the larger number of objects, or 1 for `[]` on a row without an object; the flags
        `answer/<reason>`.

    Raises:
        ConfigError: a keyword argument is invalid.
        RowError: ground_truth or extra_info is invalid, or an object has no box or point.
        ImageError, SegmenterError: with terms that compare masks, as in `reward_fns.samr1`.
    """
    arguments = ARGUMENTS(reward, segmenter, verls_own)
    rollout = read_rollout(data_source, solution_str, ground_truth, extra_info, arguments.caps)
    graded = arguments.graded(rollout)
    accuracy, iou = accuracy_of(graded)
    components = {
        "think": arguments.think(rollout),
        "format": format_of(graded.text, CONSTANTS.box, CONSTANTS.point),
        "accuracy": accuracy,
        "non_repetition": non_repetition(rollout),
    }
    return await arguments.score(rollout, components, segmenter, acc=iou or no_target(rollout))


def accuracy_of(rollout: Rollout) -> tuple[float, float]:
    """The accuracy of the best matching in [0, 3] and the IoU of its boxes in [0, 1].

    Both are sums over matched objects, divided by the larger number of objects.

    Raises:
        RowError: an object of the row has no box or point.
    """
    pairs = pairs_of(rollout)
    if pairs is None:
        return 0.0, 0.0
    scores = pairs.box_iou + pairs.box_l1 + pairs.point
    matched = best_matching(scores)
    return float(scores[matched].sum()) / pairs.larger, float(pairs.iou[matched].sum()) / pairs.larger
