"""Changes that `samr1 regress check` must catch: a replay buffer with another order, and a reward that fails once."""

from __future__ import annotations

import itertools
from typing import Any

from transfer_queue import KVBatchMeta

from reward_fns.samr1 import compute_score as samr1
from samr1_verl.training.replay_buffer import ReplayBuffer

_calls = itertools.count()


class OtherOrder(ReplayBuffer):
    """Hands the last submitted prompts of a training batch out first."""

    def _materialize_batch(self, partition_id: str, *args: Any) -> KVBatchMeta:
        batch = super()._materialize_batch(partition_id, *args)
        if partition_id == "train":
            batch.reorder(list(reversed(range(len(batch.keys)))))
        return batch


async def fails_once(*args: Any, **kwargs: Any) -> dict[str, float]:
    """The reward samr1, whose fiftieth call raises."""
    if next(_calls) == 49:
        raise RuntimeError("the fiftieth call")
    return await samr1(*args, **kwargs)
