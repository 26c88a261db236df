"""SAM-R1's reward: tiered mask IoU, reasoning format, answer format (arXiv 2505.22596).

    R = R_seg + R_think + R_format

A frozen promptable segmenter turns the answer's box and points into a mask. In a recipe:

    reward.custom_reward_function:
      path: pkg://reward_fns.samr1
      name: compute_score
      reward_kwargs: {segmenter: "${samr1.segmenter}", service: "${samr1.service}"}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from samr1_verl.answers import Answer, Reason, Unusable, has_think_format, parse_answer, within
from samr1_verl.config import ConfigError
from samr1_verl.frames import boxes_from_policy, boxes_to_policy, points_from_policy
from samr1_verl.ground_truth import GroundTruth, RowError, View, read_row
from samr1_verl.masks import MaskError
from samr1_verl.segmenters.base import Prompt
from samr1_verl.service.client import get_client


@dataclass(frozen=True)
class Constants:
    """The reward's constants. The paper gives the terms and the tiers, no weights."""

    tiers: tuple[tuple[float, float], ...] = ((0.8, 4.0), (0.7, 3.0), (0.5, 2.0))  # IoU strictly above -> R_seg; else 0
    think: float = 1.0  # R_think where the format holds, else 0; the value is unpublished
    format: float = 1.0  # R_format where box and points are valid, else 0; the value is unpublished
    max_points: int = 16  # of one object; unpublished
    max_objects: int = (
        16  # of one answer; unpublished: the paper's answers have one. Bounds the decodes an answer costs
    )

    def seg(self, iou: float) -> float:
        """R_seg of a mask IoU in [0, 1]."""
        return next((value for threshold, value in self.tiers if iou > threshold), 0.0)


def constants_from(reward: Mapping[str, Any]) -> Constants:
    """The constants with the recipe's `samr1.reward` laid over them: `thresholds` {IoU: R_seg} and `max_points`.

    A key that is absent or None keeps the paper's value.

    Raises:
        ConfigError: a key is unknown, or a value is not what it must be.
    """
    if unknown := sorted(set(reward) - {"thresholds", "max_points"}):
        raise ConfigError(f"samr1.reward.{unknown[0]}: no such key, expected thresholds or max_points")
    changes: dict[str, Any] = {}
    if (thresholds := reward.get("thresholds")) is not None:
        changes["tiers"] = _tiers(thresholds)
    if (max_points := reward.get("max_points")) is not None:
        if isinstance(max_points, bool) or not isinstance(max_points, int) or max_points < 1:
            raise ConfigError(f"samr1.reward.max_points is {max_points!r}, expected a whole number of at least 1")
        changes["max_points"] = max_points
    return Constants(**changes)


def _tiers(thresholds: Any) -> tuple[tuple[float, float], ...]:
    what = f"samr1.reward.thresholds is {thresholds!r}, expected"
    if not isinstance(thresholds, Mapping) or not thresholds:
        raise ConfigError(f"{what} a mapping of IoU to score such as {{0.5: 2, 0.7: 3, 0.8: 4}}")
    numbers = [*thresholds.keys(), *thresholds.values()]
    if any(isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one) for one in numbers):
        raise ConfigError(f"{what} finite numbers")
    tiers = tuple(sorted(((float(iou), float(score)) for iou, score in thresholds.items()), reverse=True))
    if not all(0 <= iou < 1 for iou, _ in tiers):
        raise ConfigError(f"{what} IoUs of at least 0 and below 1")
    return tiers


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any],
    *,
    segmenter: Mapping[str, Any],
    service: Mapping[str, Any],
    thresholds: Mapping[float, float] | None = None,
    max_points: int | None = None,
    **verls_own: Any,
) -> dict[str, float]:
    """Score one response.

    Args:
        data_source: names the data set, for error messages.
        solution_str: the response, special tokens removed.
        ground_truth: JSON of `ground_truth.GroundTruth`, original frame.
        extra_info: `image` (path), `sha256`, `policy_size` [W, H] and `frame`, as in `ground_truth.View`.
        segmenter: the recipe's `samr1.segmenter`.
        service: the recipe's `samr1.service`.
        thresholds: the recipe's `samr1.reward.thresholds`; None: the paper's.
        max_points: the recipe's `samr1.reward.max_points`; None: `Constants.max_points`.
        verls_own: `reward_router_address` and `reward_model_tokenizer`, which verl adds beside a reward model.

    Returns:
        Always the same keys, all floats: `score` = `seg` + `think` + `format`; `acc`, the mask IoU, 0 where there is no
        mask; `intersection` and `union` in pixels; `answer/<reason>`, 1 for the reason why the answer cannot be used,
        else 0. An unusable answer is an empty mask.

    Raises:
        ConfigError: a keyword argument is wrong, or the segmenter cannot be loaded.
        RowError: ground_truth or extra_info cannot be used.
        ImageError: the image is missing, unreadable, or not the file the row was made from.
        SegmenterError: the segmenter failed. It is never a score.
    """
    if unknown := sorted(set(verls_own) - {"reward_router_address", "reward_model_tokenizer"}):
        raise ConfigError(
            f"reward_kwargs.{unknown[0]}: no such key, expected segmenter, service, thresholds, max_points"
        )
    constants = constants_from({"thresholds": thresholds, "max_points": max_points})
    truth, view, row = read_row(data_source, ground_truth, extra_info)
    if view.image is None or view.sha256 is None:
        raise RowError(f"{row}: extra_info.image and extra_info.sha256 must be there: this reward compares masks")

    answer = read_answer(solution_str, truth, view, constants)
    try:
        if isinstance(answer, Unusable):
            intersection, union = 0, _true_pixels(truth)
        else:
            prompts = prompts_of(answer, truth, view)
            found = await get_client(segmenter, service).overlap(view.image, view.sha256, prompts, truth)
            intersection, union = found.intersection, found.union
    except MaskError as error:
        raise RowError(f"{row}: {error}") from error

    iou = intersection / union if union else 0.0
    terms = {
        "seg": constants.seg(iou),
        "think": constants.think * has_think_format(solution_str),
        "format": constants.format * isinstance(answer, Answer),
    }
    reasons = {f"answer/{one.value}": float(isinstance(answer, Unusable) and answer.reason is one) for one in Reason}
    pixels = {"intersection": float(intersection), "union": float(union)}
    return {"score": math.fsum(terms.values()), "acc": iou, **terms, **pixels, **reasons}


def read_answer(text: str, truth: GroundTruth, view: View, constants: Constants) -> Answer | Unusable:
    """The answer in the policy frame, its boxes clipped to the image."""
    answer = parse_answer(text, max_points=constants.max_points, max_objects=constants.max_objects)
    if isinstance(answer, Unusable):
        return answer
    height, width = truth.size
    extent = boxes_to_policy(np.array([0, 0, width, height]), (width, height), view.policy_size, view.frame)
    return within(answer, (float(extent[2]), float(extent[3])))


def prompts_of(answer: Answer, truth: GroundTruth, view: View) -> list[Prompt]:
    """The answer's objects as prompts in the original frame, equal ones once."""
    geometry = ((truth.size[1], truth.size[0]), view.policy_size, view.frame)
    return [
        Prompt(
            None if target.box is None else tuple(boxes_from_policy(np.array(target.box), *geometry).tolist()),
            tuple(map(tuple, points_from_policy(np.array(target.points).reshape(-1, 2), *geometry).tolist())),
            target.labels,
        )
        for target in dict.fromkeys(answer.targets)
    ]


def _true_pixels(truth: GroundTruth) -> int:
    """Pixels of the union of the true masks, ignored ones left out. Raises MaskError."""
    union, ignore = truth.union_and_ignore()
    return int(np.count_nonzero(union if ignore is None else union & ~ignore))
