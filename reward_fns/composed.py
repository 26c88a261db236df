"""A reward made only of terms: `R = Σ weight · term` over reward_fns/terms.py. In a recipe:

    samr1.reward.terms: {mask_iou: 0.7, s_measure: 0.3, think: 1, format: 1}
    reward.custom_reward_function:
      path: pkg://reward_fns.composed
      name: compute_score
      reward_kwargs: {segmenter: "${samr1.segmenter}", reward: "${samr1.reward}"}

Published rewards of this form:

    Seg-R1          {mask_iou: 0.7, s_measure: 0.3, …}
    SocioReasoner   {mask_iou: 1, point_count: 1, …}
    Think2Seg-RS    {mask_iou: 1, no_target: 1, …}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reward_fns.arguments import ArgumentReader
from reward_fns.terms import mask_iou
from samr1_verl.answers import Caps
from samr1_verl.config import ConfigError
from samr1_verl.scoring.rollout import read_rollout

# At most 16 objects per answer, because each object costs a decode.
ARGUMENTS = ArgumentReader({}, Caps(points=16, objects=16))


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any],
    *,
    reward: Mapping[str, Any],
    segmenter: Any = None,
    **verls_own: Any,
) -> dict[str, float]:
    """Score one response.

    Args:
        data_source, solution_str, ground_truth, extra_info: as in `reward_fns.samr1.compute_score`.
        reward: the recipe's `samr1.reward`: `terms` by name and weight, with at least one weight other than 0, and
            `caps`.
        segmenter: the recipe's `samr1.segmenter`; needed for terms that compare masks.
        verls_own: `reward_router_address` and `reward_model_tokenizer`, which verl adds where it has a reward model.

    Returns:
        All floats: `score`; every term before its weight; `acc`, the mask IoU, or 0 where no term compares masks; the
        flags `answer/<reason>`.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
    """
    arguments = ARGUMENTS(reward, segmenter, verls_own)
    if not any(arguments.weights.values()):
        raise ConfigError(
            "no_weighted_term",
            "samr1.reward.terms",
            f"found {dict(arguments.weights)!r}, expected a term with a weight: {{mask_iou: 1}}",
        )
    rollout = read_rollout(data_source, solution_str, ground_truth, extra_info, arguments.caps)
    rollout = await arguments.with_masks(rollout, segmenter)
    acc = 0.0 if rollout.masks is None else mask_iou(rollout)
    return await arguments.score(rollout, {}, segmenter, acc=acc)
