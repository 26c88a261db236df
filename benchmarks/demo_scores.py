"""Greedy answers of a policy about the rows of a file, scored by the reward function that trains it.

The questions, the policy and the masks are those of `samr1 eval`; the figures come from the reward's scores, so that
they compare with the training's curves: gIoU and cIoU by the segzero protocol where no pixel is ignored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from transformers import AutoProcessor

from reward_fns.samr1 import compute_score
from samr1_verl.evaluation.answering import answer_all
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.policies.base import Policy
from samr1_verl.policies.inference_config import InferenceConfig
from samr1_verl.scoring.sample import Reader
from samr1_verl.training.dataset import SegmentationDataset

BLOCK = 32


@dataclass(frozen=True)
class Summary:
    """Figures over all rows of a file, each in [0, 1] but for `mean_reward`."""

    giou: float
    ciou: float
    format_rate: float
    mean_reward: float

    @classmethod
    def of(cls, scores: Sequence[dict[str, float]]) -> Summary:
        """From the scores of the reward function, per row: score, acc, intersection, union, format."""
        count = len(scores)
        keys = ("score", "acc", "format", "intersection", "union")
        total = {key: sum(score[key] for score in scores) for key in keys}
        ciou = total["intersection"] / total["union"] if total["union"] else 0.0
        return cls(total["acc"] / count, ciou, total["format"] / count, total["score"] / count)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def rows_of(recipe: DictConfig, file: Path) -> SegmentationDataset:
    """The rows of a file as the recipe's training shows them."""
    processor = AutoProcessor.from_pretrained(recipe.actor_rollout_ref.model.path)
    data = OmegaConf.merge(recipe.data, {"shuffle": False, "filter_overlong_prompts": False})
    return SegmentationDataset([str(file)], processor.tokenizer, data, processor)


def score_rows(policy: Policy, rows: SegmentationDataset, recipe: DictConfig) -> list[dict[str, Any]]:
    """For each row, in order: its `index`, the `response`, and the reward function's `scores`."""
    kwargs = recipe.reward.custom_reward_function.reward_kwargs

    async def judge(item: Mapping[str, Any], response: str) -> dict[str, Any]:
        scores = await compute_score(
            data_source=item["data_source"],
            solution_str=response,
            ground_truth=item["reward_model"]["ground_truth"],
            extra_info=item["extra_info"],
            **kwargs,
        )
        return {"index": item["index"], "response": response, "scores": scores}

    blocks = ([rows[i] for i in range(at, min(at + BLOCK, len(rows)))] for at in range(0, len(rows), BLOCK))
    results: list[dict[str, Any]] = []
    asyncio.run(answer_all(policy, blocks, judge, results.extend))
    return sorted(results, key=lambda row: row["index"])


def predicted_mask(item: Mapping[str, Any], response: str, recipe: DictConfig) -> np.ndarray:
    """The mask (HxW bool, original frame) that a response asks for; empty where its answer is unusable."""
    config = InferenceConfig.of(recipe)
    sample = asyncio.run(Reader(config.segmenter, config.caps).sample(item, response, {}))
    return decode_rle(sample.mask, sample.size)
