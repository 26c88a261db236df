"""SAM-R1's reward: tiered mask IoU, reasoning format, answer format (arXiv 2505.22596).

    R = R_seg + R_think + R_format

A frozen promptable segmenter turns the answer's box and points into a mask. On a row without an object, which the paper
does not have, the answer `[]` counts as a mask with IoU 1, and every other answer as one with IoU 0 (unpublished). In a
recipe:

    reward.custom_reward_function:
      path: pkg://reward_fns.samr1
      name: compute_score
      reward_kwargs: {segmenter: "${samr1.segmenter}", reward: "${samr1.reward}"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_fns.arguments import ArgumentReader
from reward_fns.terms import no_target, reasons, usable
from samr1_verl.answers import Caps
from samr1_verl.scoring.rollout import overlap, read_rollout

WEIGHTS = {
    "seg": 1.0,  # of R_seg, a tier of CONSTANTS; the paper sums the three
    "think": 1.0,  # of R_think, 1 where the reasoning format is kept and the reasoning not blank; unpublished
    "format": 1.0,  # of R_format, 1 where box and points are valid, else 0; the value is unpublished
}


# Maximum number of points per object and of objects per answer; limits the decodes per answer. Unpublished: the
# paper's answers have one object.
CAPS = Caps(points=16, objects=16)


@dataclass(frozen=True)
class Constants:
    """The reward's constants."""

    # (IoU, R_seg): an IoU above the first number scores the second; no tier: 0.
    tiers: tuple[tuple[float, float], ...] = ((0.8, 4.0), (0.7, 3.0), (0.5, 2.0))
    caps: Caps = CAPS


CONSTANTS = Constants()
ARGUMENTS = ArgumentReader(WEIGHTS, CONSTANTS.caps, reads=["thresholds"], masks=True)


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

    The path of a response, file by file:

        reward, segmenter     reward_fns/arguments.py      the recipe's values, read once per process
        parse                 samr1_verl/scoring/rollout.py: read_rollout, with rows/ground_truth.py and answers.py
        prompts               samr1_verl/scoring/rollout.py: overlap, with geometry/frames.py
        client.overlap        samr1_verl/service/client.py: one client per process, with service/engine.py behind it
        tiers and terms       this file, reward_fns/terms.py

    Args:
        data_source: name of the data set, for error messages.
        solution_str: the response, without special tokens.
        ground_truth: JSON of `ground_truth.GroundTruth`, original frame.
        extra_info: `image` (path), `sha256`, `policy_size` [W, H] and `frame`, as in `ground_truth.View`.
        segmenter: the recipe's `samr1.segmenter`, or a client (samr1_verl/service/client.py).
        reward: the recipe's `samr1.reward`: `thresholds` {IoU: R_seg}, `caps` and `terms`. `terms` has weights by name
            for further terms of reward_fns/terms.py, and for the reward's own. None: the paper's values.
        verls_own: `reward_router_address` and `reward_model_tokenizer`, which verl adds where it has a reward model.

    Returns:
        Always the same keys, all floats: `score`, the weighted sum of `seg`, `think`, `format` and further terms; each
        of them before its weight; `acc`, the mask IoU: 0 where there is no mask, but 1 for `[]` on a row without an
        object; `intersection`, `union`, `ignored` and `ignored_predicted`, the pixels of
        `samr1_verl.geometry.giou.PixelCounts`; `answer/<reason>`, 1 for the reason why the answer is unusable, else 0.
        An unusable answer counts as an empty mask.

    Raises:
        ConfigError: a keyword argument is invalid, or the segmenter cannot be loaded.
        RowError: ground_truth or extra_info is invalid.
        ImageError: the image is missing, unreadable, or not the file that the row was made from.
        SegmenterError: the segmenter failed; the fault never becomes a score.
    """
    arguments = ARGUMENTS(reward, segmenter, verls_own)
    rollout = read_rollout(data_source, solution_str, ground_truth, extra_info, arguments.caps)
    pixels = await overlap(rollout, segmenter)
    iou = pixels.intersection / pixels.union if pixels.union else no_target(rollout)
    tiers = arguments.config.tiers or CONSTANTS.tiers
    components = {"seg": tier_of(iou, tiers), "think": reasons(rollout), "format": usable(rollout)}
    scores = await arguments.score(rollout, components, segmenter, acc=iou)
    return {**scores, **pixels.scores()}


def tier_of(iou: float, tiers: Sequence[tuple[float, float]]) -> float:
    """The score of a mask IoU in [0, 1]: the score of the highest tier whose threshold is below the IoU, else 0.

    Args:
        tiers: pairs (threshold, score), the highest threshold first.
    """
    return next((score for threshold, score in tiers if iou > threshold), 0.0)
