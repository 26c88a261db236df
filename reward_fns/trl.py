"""The rewards of this folder for TRL's GRPOTrainer:

    from reward_fns.seg_zero import compute_score
    from reward_fns.trl import trl_reward

    GRPOTrainer(model, reward_funcs=trl_reward(compute_score), train_dataset=rows, …)

where `rows` has compute_score's columns `data_source` (str), `ground_truth` (str) and `extra_info` (struct), and TRL's
own `prompt` and `image`, as `samr1 data export --for trl` writes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np

Message = Mapping[str, Any]


def trl_reward(
    compute_score: Callable[..., Awaitable[dict[str, float]]], **reward_kwargs: Any
) -> Callable[..., Awaitable[list[float]]]:
    """A reward function with TRL's signature, named after the reward's module.

    Args:
        compute_score: a reward of this folder, or any function with the same signature.
        reward_kwargs: keyword arguments of compute_score, as under verl's `reward_kwargs`.

    Returns:
        An async function of completions and columns. It returns one score per completion, computes them concurrently,
        and logs the mean of every other key as `reward/<key>`. An exception of compute_score ends the training step.
    """

    async def reward(
        completions: Sequence[str | Sequence[Message]],
        *,
        data_source: Sequence[str],
        ground_truth: Sequence[str],
        extra_info: Sequence[Mapping[str, Any]],
        log_metric: Callable[[str, float], None] | None = None,
        **_others: Any,
    ) -> list[float]:
        rows = zip(data_source, completions, ground_truth, extra_info, strict=True)
        scores = await asyncio.gather(
            *(
                compute_score(source, _text(completion), truth, dict(extra), **reward_kwargs)
                for source, completion, truth, extra in rows
            )
        )
        if log_metric is not None:
            for key in scores[0].keys() - {"score"}:
                log_metric(f"reward/{key}", float(np.mean([score[key] for score in scores])))
        return [score["score"] for score in scores]

    reward.__name__ = compute_score.__module__.rpartition(".")[2]
    return reward


def _text(completion: str | Sequence[Message]) -> str:
    """The text of a completion: a string, or the last message of a conversation."""
    content = completion if isinstance(completion, str) else completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
