"""The rewards of this folder for ms-swift's GRPO, in a file that its `--external_plugins` names:

    from swift.rewards import orms

    from reward_fns.samr1 import compute_score
    from reward_fns.swift import swift_rewards

    orms.update(swift_rewards(compute_score, metrics=["acc"], segmenter={...}))

    swift rlhf --rlhf_type grpo --external_plugins that_file.py --dataset rows.jsonl \\
        --reward_funcs samr1 samr1_acc --reward_weights 1 0 …

The file must lie outside this folder: ms-swift puts the file's folder first in the import path, where `trl` would then
be this folder's `trl.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any


def swift_rewards(
    compute_score: Callable[..., Awaitable[dict[str, float]]], metrics: Sequence[str] = (), **reward_kwargs: Any
) -> dict[str, type]:
    """Reward classes for ms-swift's registry `orms`, by name.

    ms-swift logs the mean and the standard deviation of every reward function as `rewards/<name>/mean` and
    `rewards/<name>/std`, and nothing else. A metric is therefore a reward function of its own, to be given weight 0.
    A completion is scored once, however many of these functions a run names.

    Args:
        compute_score: a reward of this folder, or any function with the same signature.
        metrics: further keys of its result, such as `acc`.
        reward_kwargs: keyword arguments of compute_score, as under verl's `reward_kwargs`.

    Returns:
        `<module>` for the score, named after the reward's module, and `<module>_<key>` per metric. The data set has the
        columns of samr1_verl/prompts/export.py. An exception of compute_score ends the training.

    Raises:
        ValueError: in training, for a value that is None or not finite: ms-swift counts None and NaN as 0.
    """
    from swift.rewards import AsyncORM  # here, so that this file can be imported where ms-swift is not installed

    module = compute_score.__module__.rpartition(".")[2]
    batch = _Batch(compute_score, reward_kwargs)

    def reward_class(name: str, key: str) -> type:
        async def values(
            self: Any,
            completions: Sequence[str],
            *,
            data_source: Sequence[str],
            ground_truth: Sequence[str],
            extra_info: Sequence[Mapping[str, Any]],
            **_others: Any,
        ) -> list[float]:
            found = [score[key] for score in await batch(completions, data_source, ground_truth, extra_info)]
            for source, value in zip(data_source, found, strict=True):
                if value is None or not math.isfinite(value):
                    raise ValueError(f"{module}: {key} is {value} for a row of {source}, expected a finite number")
            return found

        # ms-swift names a reward in its log after its class.
        return type(name, (AsyncORM,), {"__call__": values, "__module__": __name__})

    return {module: reward_class(module, "score")} | {
        f"{module}_{key}": reward_class(f"{module}_{key}", key) for key in metrics
    }


class _Batch:
    """Scores the completions of a step once: all reward functions get the same list, in the same event loop."""

    def __init__(
        self, compute_score: Callable[..., Awaitable[dict[str, float]]], reward_kwargs: dict[str, Any]
    ) -> None:
        self._compute_score, self._reward_kwargs = compute_score, reward_kwargs
        self._completions: Sequence[str] | None = None
        self._scores: asyncio.Future[list[dict[str, float]]]

    async def __call__(self, completions: Sequence[str], *columns: Sequence[Any]) -> list[dict[str, float]]:
        if completions is not self._completions:
            self._completions, self._scores = completions, asyncio.gather(*self._each(completions, *columns))
        return await self._scores

    def _each(self, completions: Sequence[str], *columns: Sequence[Any]) -> list[Awaitable[dict[str, float]]]:
        return [
            self._compute_score(source, completion, truth, dict(extra), **self._reward_kwargs)
            for completion, source, truth, extra in zip(completions, *columns, strict=True)
        ]
