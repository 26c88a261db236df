"""A reward for a policy that looks at its mask and mends it: SAM-R1's terms on the last mask, the gain, the turns.

    R = R_seg + R_think + R_format + IoU_first + (IoU_last - IoU_first) - 0.1 · (answers - 1)

SAM-Veteran rewards the change of IoU from turn to turn; the weights here are unpublished. A bad first mask alone could
earn a change. Here the weight of the gain is at most the weight of the first mask's IoU: each point of IoU that the
first mask gives away costs at least what the gain pays back, and a mend costs as well. The agent loop `samr1_refine`
runs the turns; a response without turns counts as one turn. In a recipe:

    reward.custom_reward_function:
      path: pkg://reward_fns.refine
      name: compute_score
      reward_kwargs: {segmenter: "${samr1.segmenter}", reward: "${samr1.reward}", refine: "${samr1.refine}"}
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from reward_fns.arguments import ArgumentReader, Arguments
from reward_fns.samr1 import CONSTANTS, tier_of
from reward_fns.terms import no_target, usable
from samr1_verl.answers import thinking
from samr1_verl.config import ConfigError, once_per_object, refine_config
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.scoring.rollout import Rollout, overlap, read_rollout
from samr1_verl.scoring.turns import answers_of, turns_of

WEIGHTS = {
    "seg": 1.0,  # of R_seg, the tier of the last mask's IoU, as in reward_fns/samr1.py
    "think": 1.0,  # of R_think, 1 where every turn keeps the reasoning format and the reasoning is not blank
    "format": 1.0,  # 1 where every answer is usable
    "first": 1.0,  # of the first mask's IoU; unpublished
    "gain": 1.0,  # of the last mask's IoU minus the first one's; at most the weight of `first`; unpublished
    "mends": -0.1,  # of the number of answers after the first; unpublished
}
ARGUMENTS = ArgumentReader(WEIGHTS, CONSTANTS.caps, reads=["thresholds"], masks=True)
_refine_of = once_per_object(refine_config)


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any],
    *,
    segmenter: Any = None,
    reward: Mapping[str, Any] | None = None,
    refine: Mapping[str, Any],
    **verls_own: Any,
) -> dict[str, float]:
    """Score one rollout of one or several turns.

    Args:
        data_source, solution_str, ground_truth, segmenter, reward, verls_own: as `reward_fns.samr1.compute_score`.
        extra_info: as there, with the texts of all turns under `turns`; without them `solution_str` is the only turn.
        refine: the recipe's `samr1.refine`; `max_turns` gives the number of the keys `acc/turn_<number>`.

    Returns:
        Always the same keys, all floats: those of `reward_fns.samr1.compute_score`, of the last answer; `first`, `gain`
        and `mends`, before their weights; `turns`, the number of turns; `done`, 1 where the last turn says so; and for
        each turn `acc/turn_<number>`, the IoU of the mask that a policy would have that stops after it.

    Raises:
        ConfigError: a keyword argument is invalid, or the weight of `gain` is above the weight of `first`.
        RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
    """
    arguments = ARGUMENTS(reward, segmenter, verls_own)
    _check(arguments)
    max_turns, turns = _refine_of(refine).max_turns, turns_of(solution_str, extra_info)
    answers = [read_rollout(data_source, text, ground_truth, extra_info, arguments.caps) for text in answers_of(turns)]
    pixels = await asyncio.gather(*(overlap(answer, segmenter) for answer in answers))
    ious = [_iou(*pair) for pair in zip(answers, pixels, strict=True)]
    components = {
        "seg": tier_of(ious[-1], arguments.config.tiers or CONSTANTS.tiers),
        "think": float(all((thinking(text) or "").strip() for text in turns)),
        "format": min(map(usable, answers)),
        "first": ious[0],
        "gain": ious[-1] - ious[0],
        "mends": float(len(answers) - 1),
    }
    scores = await arguments.score(answers[-1], components, segmenter, acc=ious[-1])
    by_turn = {f"acc/turn_{turn}": ious[min(turn, len(ious)) - 1] for turn in range(1, max_turns + 1)}
    done = float(len(answers) < len(turns))
    return {**scores, **pixels[-1].scores(), "turns": float(len(turns)), "done": done, **by_turn}


def _iou(answer: Rollout, pixels: PixelCounts) -> float:
    return pixels.intersection / pixels.union if pixels.union else no_target(answer)


def _check(arguments: Arguments) -> None:
    gain, first = arguments.weights["gain"], arguments.weights["first"]
    if gain > first:
        raise ConfigError(
            "gain_above_first",
            "samr1.reward.terms.gain",
            f"found {gain:g}, expected at most the weight of first, {first:g}: otherwise a policy earns most by a bad "
            "first mask. Set samr1.reward.terms.first as well",
        )
