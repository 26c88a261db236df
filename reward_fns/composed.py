"""A reward made of terms alone: `R = Σ weight · term` over reward_fns/terms.py. In a recipe:

    reward.custom_reward_function:
      path: pkg://reward_fns.composed
      name: compute_score
      reward_kwargs: {segmenter: "${samr1.segmenter}", service: "${samr1.service}", terms: {…}}

Published rewards that are nothing else:

    Seg-R1          {mask_iou: 0.7, s_measure: 0.3, …}
    SocioReasoner   {mask_iou: 1, point_count: 1, …}
    Think2Seg-RS    {mask_iou: 1, no_target: 1, …}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samr1_verl.scoring.rollout import check_keywords, read_rollout
from reward_fns.terms import mask_iou, weigh, weights_of, with_asked_masks
from samr1_verl.answers import MAX_POINTS
from samr1_verl.config import ConfigError

FORMAT_TERMS = ("think", "format", "point_count", "length", "non_repetition")  # earned without a correct object
MAX_OBJECTS = 16  # of one answer; bounds the decodes an answer costs


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any],
    *,
    terms: Mapping[str, float],
    segmenter: Mapping[str, Any] | None = None,
    service: Mapping[str, Any] | None = None,
    **verls_own: Any,
) -> dict[str, float]:
    """Score one response.

    Args:
        data_source, solution_str, ground_truth, extra_info: as in `reward_fns.samr1.compute_score`.
        terms: terms by name and weight; at least one weight is not 0.
        segmenter, service: the recipe's `samr1.segmenter` and `samr1.service`, for terms that compare masks.
        verls_own: what verl adds beside a reward model.

    Returns:
        `score`; every term before its weight; `acc`, the mask IoU, 0 where no term compares masks; the flags
        `answer/<reason>`.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
    """
    check_keywords(verls_own, "terms", "segmenter", "service")
    weights = weights_of(terms, {})
    if not any(weights.values()):
        raise ConfigError(f"reward_kwargs.terms is {dict(terms)!r}, expected a term with a weight: {{mask_iou: 1}}")
    rollout = read_rollout(data_source, solution_str, ground_truth, extra_info, MAX_POINTS, MAX_OBJECTS)
    rollout = await with_asked_masks(rollout, weights, {}, segmenter, service)
    return {"acc": 0.0 if rollout.masks is None else mask_iou(rollout), **weigh(rollout, {}, weights)}
