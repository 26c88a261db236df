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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from samr1_verl.scoring.rollout import Rollout, check_keywords, image_of, prompts_of, read_rollout, true_union
from reward_fns.terms import think, usable, weigh, weights_of, with_asked_masks
from samr1_verl.answers import MAX_OBJECTS, MAX_POINTS, Unusable
from samr1_verl.config import ConfigError
from samr1_verl.rows.ground_truth import RowError
from samr1_verl.geometry.masks import MaskError
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.service.client import get_client

WEIGHTS = {
    "seg": 1.0,  # R_seg; the paper sums the three
    "think": 1.0,  # R_think where the format holds, else 0; the value is unpublished
    "format": 1.0,  # R_format where box and points are valid, else 0; the value is unpublished
}
FORMAT_TERMS = ("think", "format")  # what an answer can earn without a correct object


@dataclass(frozen=True)
class Constants:
    """The reward's constants."""

    tiers: tuple[tuple[float, float], ...] = ((0.8, 4.0), (0.7, 3.0), (0.5, 2.0))  # IoU strictly above -> R_seg; else 0
    max_points: int = 16  # of one object; unpublished
    max_objects: int = 16  # of one answer; unpublished: the paper's have one. Bounds the decodes an answer costs

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


def caps_of(reward: Mapping[str, Any] | None) -> tuple[int, int]:
    """`max_points` and `max_objects` of a usable answer, for a recipe's `samr1.reward`.

    None, where a recipe trains another reward, gives the parser's own. Raises ConfigError as `constants_from`.
    """
    if reward is None:
        return MAX_POINTS, MAX_OBJECTS
    constants = constants_from(reward)
    return constants.max_points, constants.max_objects


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
    terms: Mapping[str, float] | None = None,
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
        terms: further terms of reward_fns/terms.py by name and weight, or other weights for the reward's own.
        verls_own: `reward_router_address` and `reward_model_tokenizer`, which verl adds beside a reward model.

    Returns:
        Always the same keys, all floats: `score`, the weighted sum of `seg`, `think`, `format` and further terms; each
        of them before its weight; `acc`, the mask IoU, 0 where there is no mask; `intersection`, `union`,
        `ignored` and `ignored_predicted`, the pixels of `samr1_verl.geometry.giou.PixelCounts`; `answer/<reason>`, 1 for
        the reason why the answer cannot be used, else 0. An unusable answer is an empty mask.

    Raises:
        ConfigError: a keyword argument is wrong, or the segmenter cannot be loaded.
        RowError: ground_truth or extra_info cannot be used.
        ImageError: the image is missing, unreadable, or not the file the row was made from.
        SegmenterError: the segmenter failed. It is never a score.
    """
    check_keywords(verls_own, "segmenter", "service", "thresholds", "max_points", "terms")
    constants = constants_from({"thresholds": thresholds, "max_points": max_points})
    weights = weights_of(terms, WEIGHTS)
    rollout = read_rollout(
        data_source, solution_str, ground_truth, extra_info, constants.max_points, constants.max_objects
    )
    counts = await _count(rollout, segmenter, service)
    iou = counts.intersection / counts.union if counts.union else 0.0
    components = {"seg": constants.seg(iou), "think": think(rollout), "format": usable(rollout)}
    rollout = await with_asked_masks(rollout, weights, WEIGHTS, segmenter, service)
    pixels = {name: float(value) for name, value in asdict(counts).items()}
    return {"acc": iou, **weigh(rollout, components, weights), **pixels}


async def _count(rollout: Rollout, segmenter: Any, service: Any) -> PixelCounts:
    """The predicted mask against the true one; an empty one for an unusable answer."""
    image, sha256 = image_of(rollout)
    if isinstance(rollout.answer, Unusable):
        true, ignore = true_union(rollout)
        return PixelCounts.of(np.zeros_like(true), true, ignore)
    prompts = prompts_of(rollout.answer, rollout.truth, rollout.view)
    try:
        found = await get_client(segmenter, service).overlap(image, sha256, prompts, rollout.truth)
    except MaskError as error:
        raise RowError(f"{rollout.row}: {error}") from error
    return found.pixels
