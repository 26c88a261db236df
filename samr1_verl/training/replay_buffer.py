"""The replay buffer, which adds training metrics that verl lacks: each component of the reward, and the groups.

verl logs the parts of a reward at validation only. But a recipe may replace the buffer from which it samples finished
rollouts, and verl logs the metrics which that returns:

    trainer.v1.sampler.custom_sampler: {path: pkg://samr1_verl.training.replay_buffer, name: ReplayBuffer}

One step's metrics, over the rollouts it trains on, verl's padding rows not among them:

    reward/<key>                       mean of a numeric key of the reward's dict: reward/acc, reward/answer/not_json, …
    critic/groups/zero_advantage_frac  share of groups whose rewards are all equal, or that hold one rollout
    critic/groups/count                prompts of which a rollout came back
    critic/groups/size/mean, min       rollouts of a group
    critic/groups/tokens/mean, max, min  response tokens of a group
    reward/seconds/mean, max           from a finished answer to its reward, queues included
    reward/exposed_seconds             what the reward adds to the rollouts of the step, beyond generation
    reward/step_share                  that, as a share of the time since the step before
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import replay_buffer
from verl.utils import tensordict_utils as tu

from samr1_verl.training.validation import Validated

POLL_S = 0.2  # verl looks for finished rollouts every 2 s, which is up to a sixth of a step of the tiny recipe


def reward_metrics(rewards: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`reward/<key>`, the mean over rollouts, for every key of the reward's dicts.

    Raises:
        ValueError: the dicts have different keys, or a value is not a number. verl asks for the same numeric keys every
            time; a mean over a changing part of the rollouts would move although no reward did.
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
    """`critic/groups/…` from each rollout's prompt, summed reward and number of response tokens."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, uid in enumerate(uids):
        rows_of[uid].append(row)
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
    """`reward/seconds/…` and `reward/exposed_seconds` from each rollout's seconds of generation and of reward.

    The synchronous trainer starts a step's rollouts together, so the last answer is there after the longest generation,
    and the last reward after the longest sum.
    """
    total = [generation + reward for generation, reward in zip(generated, scored, strict=True)]
    return {
        "reward/seconds/mean": float(np.mean(scored)),
        "reward/seconds/max": float(np.max(scored)),
        "reward/exposed_seconds": float(np.max(total) - np.max(generated)),
    }


class ReplayBuffer(replay_buffer.ReplayBuffer):
    """verl's buffer of the synchronous trainers, which also measures what it hands out.

    verl builds a buffer that a recipe names without its own filters: `algorithm.filter_groups` and
    `sampler.sync_refill_failed_groups` have no effect.
    """

    def __init__(self, trainer_mode: str, *args: Any, **kwargs: Any) -> None:
        if trainer_mode != "sync":
            raise ValueError(
                f"trainer.v1.trainer_mode: found {trainer_mode!r}, expected samr1 or sync with the sampler "
                "samr1_verl.training.replay_buffer.ReplayBuffer. Set the mode, or set "
                "trainer.v1.sampler.custom_sampler.path=null."
            )
        super().__init__(trainer_mode, *args, poll_interval=POLL_S, **kwargs)
        self._sampled: float | None = None  # when the last batch for training left, on the monotonic clock
        self._validated: dict[int, list[Validated]] = {}  # of the last validation, by its step

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, Any]]:
        """verl's `sample`: the batch, and its metrics together with ours when it is for training."""
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        if partition_id == "train":
            metrics = {**metrics, **measure(batch)}
            now, before = time.monotonic(), self._sampled
            if before is not None:
                metrics["reward/step_share"] = metrics["reward/exposed_seconds"] / (now - before)
            self._sampled = now
        else:
            self._validated = {global_steps: [*self._validated.get(global_steps, []), *validated(batch)]}
        return batch, metrics

    def take_validated(self, global_steps: int) -> list[Validated]:
        """The rows of the validation at a step, once."""
        return self._validated.pop(global_steps, [])


def validated(batch: KVBatchMeta) -> list[Validated]:
    """Fetch the responses of a validation batch, their rows and what they earned from TransferQueue."""
    data = tq.kv_batch_get(
        keys=batch.keys,
        partition_id=batch.partition_id,
        select_fields=["responses", "data_source", "reward_model", "extra_info", "extra_fields"],
    )
    rows = zip(*(tu.get(data, name) for name in ("data_source", "reward_model", "extra_info")), strict=True)
    return [
        Validated(
            dict(zip(("data_source", "reward_model", "extra_info"), row, strict=True)),
            response.tolist(),
            extra["reward_extra_info"],
        )
        for row, response, extra in zip(rows, data["responses"], tu.get(data, "extra_fields"), strict=True)
    ]


def measure(batch: KVBatchMeta) -> dict[str, float]:
    """Fetch what the rollouts of `batch` earned from TransferQueue and summarise it."""
    data = tq.kv_batch_get(
        keys=batch.keys,
        partition_id=batch.partition_id,
        select_fields=["uid", "rm_scores", "extra_fields", "response_mask", "metrics"],
    )
    scores = [float(row.sum()) for row in data["rm_scores"]]
    tokens = [int(row.sum()) for row in data["response_mask"]]
    rewards = [extra["reward_extra_info"] for extra in tu.get(data, "extra_fields")]
    loops = tu.get(data, "metrics")
    return {
        **reward_metrics(rewards),
        **group_metrics(tu.get(data, "uid"), scores, tokens),
        **time_metrics([loop["generate_sequences"] for loop in loops], [loop["compute_score"] for loop in loops]),
    }
