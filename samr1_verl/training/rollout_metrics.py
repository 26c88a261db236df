"""Metrics of a step's rollouts: components of the reward, groups, times. The names are in replay_buffer.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import transfer_queue as tq
from typing_extensions import Self
from verl.utils import tensordict_utils as tu

LOW, HIGH = 0.5, 0.8  # mask IoUs: the lowest and the highest threshold of SAM-R1's reward
IOU = "acc"  # the mask IoU in a reward's dict


@dataclass(frozen=True)
class EqualGroups:
    """The number of groups with one rollout, or with equal rewards only.

    `low`: of them, those whose mask IoUs are all at most LOW, so that no rollout finds the object; `high`: those whose
    mask IoUs are all above HIGH, so that every rollout does. A reward without a mask IoU has neither.
    """

    count: int = 0
    low: int = 0
    high: int = 0

    @classmethod
    def among(cls, uids: Sequence[str], rewards: Sequence[Mapping[str, float]], scores: Sequence[float]) -> Self:
        """Of these rollouts: the prompt's uid, the reward's dict and the reward of each."""
        equal = [rows for rows in rows_by(uids).values() if len({scores[row] for row in rows}) == 1]
        ious = [np.array([rewards[row].get(IOU, np.nan) for row in rows], dtype=np.float64) for rows in equal]
        return cls(
            len(equal), sum(bool((iou <= LOW).all()) for iou in ious), sum(bool((iou > HIGH).all()) for iou in ious)
        )

    def __add__(self, other: EqualGroups) -> EqualGroups:
        return EqualGroups(self.count + other.count, self.low + other.low, self.high + other.high)


def rows_by(uids: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each group, by the uid of its prompt."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, uid in enumerate(uids):
        rows[uid].append(row)
    return dict(rows)


def reward_metrics(rewards: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`reward/<key>`, the mean over rollouts, for every key of the reward's dicts.

    Raises:
        ValueError: the dicts have different keys, or a value is not a number. verl requires the same numeric keys in
            every dict, and a mean over a changing part of the rollouts could change although no reward changed.
    """
    keys = set(rewards[0])
    for row, reward in enumerate(rewards):
        if set(reward) != keys:
            raise ValueError(
                f"reward of rollout {row}: found the keys {sorted(reward)}, expected {sorted(keys)} as in rollout 0. "
                "Return the same keys on every path of compute_score."
            )
        for key, value in reward.items():
            if not isinstance(value, int | float | np.number):
                raise ValueError(f"reward of rollout {row}: {key} is {value!r}, expected a number from compute_score.")
    return {f"reward/{key}": float(np.mean([reward[key] for reward in rewards])) for key in sorted(keys)}


def group_metrics(uids: Sequence[str], scores: Sequence[float], tokens: Sequence[int]) -> dict[str, float]:
    """`critic/groups/…`, from the prompt's uid, the reward and the number of response tokens of each rollout."""
    rows_of = rows_by(uids)
    sizes = [len(rows) for rows in rows_of.values()]
    group_tokens = [sum(tokens[row] for row in rows) for rows in rows_of.values()]
    flat = [len({scores[row] for row in rows}) == 1 for rows in rows_of.values()]
    return {
        "critic/groups/zero_advantage_frac": float(np.mean(flat)),
        "critic/groups/count": float(len(rows_of)),
        "critic/groups/size/mean": float(np.mean(sizes)),
        "critic/groups/size/min": float(np.min(sizes)),
        "critic/groups/tokens/mean": float(np.mean(group_tokens)),
        "critic/groups/tokens/max": float(np.max(group_tokens)),
        "critic/groups/tokens/min": float(np.min(group_tokens)),
    }


def time_metrics(generated: Sequence[float], scored: Sequence[float]) -> dict[str, float]:
    """`reward/seconds/…` and `reward/exposed_seconds`, from the seconds of generation and of reward of each rollout.

    The synchronous trainer starts all rollouts of a step together. So the last answer is finished after the longest
    generation, and the last reward after the longest sum of both.
    """
    total = [generation + reward for generation, reward in zip(generated, scored, strict=True)]
    return {
        "reward/seconds/mean": float(np.mean(scored)),
        "reward/seconds/max": float(np.max(scored)),
        "reward/exposed_seconds": float(np.max(total) - np.max(generated)),
    }


@dataclass(frozen=True)
class Rollouts:
    """Values of finished rollouts, one entry per rollout."""

    uids: list[str]  # of the prompts
    scores: list[float]
    tokens: list[int]  # response tokens
    rewards: list[Mapping[str, Any]]  # the reward's dicts
    times: list[Mapping[str, float]]  # seconds, by the agent loop's names

    @classmethod
    def of(cls, keys: Sequence[str], partition_id: str) -> Rollouts:
        """Fetch them from TransferQueue."""
        fields = ["uid", "rm_scores", "extra_fields", "response_mask", "metrics"]
        data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=fields)
        return cls(
            list(tu.get(data, "uid")),
            [float(row.sum()) for row in data["rm_scores"]],
            [int(row.sum()) for row in data["response_mask"]],
            [extra["reward_extra_info"] for extra in tu.get(data, "extra_fields")],
            list(tu.get(data, "metrics")),
        )

    def equal_groups(self) -> EqualGroups:
        """Their groups with equal rewards."""
        return EqualGroups.among(self.uids, self.rewards, self.scores)

    def metrics(self) -> dict[str, float]:
        """The metrics of a training batch."""
        generated, scored = ([loop[name] for loop in self.times] for name in ("generate_sequences", "compute_score"))
        return {
            **reward_metrics(self.rewards),
            **group_metrics(self.uids, self.scores, self.tokens),
            **time_metrics(generated, scored),
        }
