"""A small policy, rollout batches for it, and what verl's trainer and engine do with them, in one process.

The functions that matter are verl's: the call of the estimator, the split into micro-batches, `ppo_loss`. Repeated here
is the arithmetic around them in FSDPEngine.forward_backward_batch: the mini-batch's token count over ranks, the sum of
the micro-batches' gradients, their average over ranks. test_engine.py runs the engine itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig
from verl.workers.config import PolicyLossConfig as VerlPolicyLossConfig
from verl.workers.engine.utils import prepare_micro_batches
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import response_to_nested

from samr1_verl.training.objective import PolicyLossConfig
from samr1_verl.training.trainer import actor_loss

FEATURES, VOCABULARY, PROMPT = 3, 5, 2


@dataclass
class Rollout:
    """One answer: its prompt's uid, its reward, the features and ids of its tokens; verl adds rows of `padding`.

    `written_T`: whether the policy wrote a token; a dialogue has others between its turns.
    """

    uid: str
    reward: float
    features_TF: torch.Tensor
    tokens_T: torch.Tensor
    written_T: torch.Tensor
    padding: bool = False

    def log_prob(self, weights_VF: torch.Tensor) -> torch.Tensor:
        """log π of each token under the policy `weights_VF`: float64, shape (T,)."""
        return torch.log_softmax(self.features_TF @ weights_VF.T, -1).gather(-1, self.tokens_T[:, None]).squeeze(-1)

    def written(self, weights_VF: torch.Tensor) -> torch.Tensor:
        """`log_prob` of the tokens that the policy wrote."""
        return self.log_prob(weights_VF)[self.written_T]


@dataclass
class Batch:
    """Rollouts in the order the trainer holds them, and the policies that made, train and anchor them."""

    rollouts: list[Rollout]
    policy_VF: torch.Tensor
    old_VF: torch.Tensor
    ref_VF: torch.Tensor
    groups: dict[str, list[Rollout]] = field(init=False)

    def __post_init__(self) -> None:
        self.groups = {}
        for rollout in self.rollouts:
            if not rollout.padding:
                self.groups.setdefault(rollout.uid, []).append(rollout)


def make_batch(
    rewards: list[list[float]],
    lengths: list[list[int]],
    *,
    rows: int,
    seed: int = 0,
    step: float = 0.3,
    turns: bool = False,
) -> Batch:
    """Rollouts of one group per list, shuffled over the batch and padded to `rows` rows as verl pads.

    With `turns`, some tokens between the first and the last one are not the policy's.

    Everything random is between -1 and 1: with a `step` of 0.3 each token's k3 stays below 10, where verl cuts it.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1

    def rollout(uid: str, reward: float, length: int, padding: bool = False) -> Rollout:
        tokens = torch.randint(VOCABULARY, (length,), generator=generator)
        written = torch.full((length,), not padding)
        if turns and not padding:
            written[1:-1] = torch.rand(max(0, length - 2), generator=generator) > 0.5
        return Rollout(uid, reward, uniform(length, FEATURES), tokens, written, padding)

    rollouts = [
        rollout(f"uid{group}", reward, length)
        for group, (rewards_, lengths_) in enumerate(zip(rewards, lengths, strict=True))
        for reward, length in zip(rewards_, lengths_, strict=True)
    ]
    rollouts += [rollout("pad", 0.0, 1, padding=True) for _ in range(rows - len(rollouts))]
    order = torch.randperm(rows, generator=generator).tolist()
    old = uniform(VOCABULARY, FEATURES)
    policy = (old + step * uniform(VOCABULARY, FEATURES)).requires_grad_()
    return Batch([rollouts[i] for i in order], policy, old, old + 0.1 * uniform(VOCABULARY, FEATURES))


def actor_config(
    normalizer: str | None = "group", loss_agg_mode: str = "token-mean", **changes: Any
) -> FSDPActorConfig:
    """verl's actor configuration as the recipe builds it; without a normaliser, verl's vanilla loss."""
    loss = VerlPolicyLossConfig() if normalizer is None else PolicyLossConfig(loss_mode="samr1", normalizer=normalizer)
    values = {
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.3,
        "clip_ratio_c": None,
        "kl_loss_type": "low_var_kl",
    } | changes
    return FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=8,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=loss,
        loss_agg_mode=loss_agg_mode,
        **values,
    )


def exact_loss(beta: float, **changes: Any) -> Callable:
    """The loss that samr1_verl.training.trainer gives the actor."""
    return partial(actor_loss, config=actor_config(**changes), kl_coef=beta, kl_type="low_var_kl")


def verl_loss(**changes: Any) -> Callable:
    """The loss that verl gives the actor."""
    return partial(ppo_loss, config=actor_config(**changes))


def estimate(batch: Batch, estimator: str = "samr1", **settings: Any) -> TensorDict:
    """All rows as verl's trainer leaves them before the update: nested fields, advantages and returns included."""
    nested = {
        "prompts": [torch.zeros(PROMPT, dtype=torch.int64) for _ in batch.rollouts],
        "responses": [rollout.tokens_T for rollout in batch.rollouts],
        "input_ids": [torch.cat([torch.zeros(PROMPT, dtype=torch.int64), r.tokens_T]) for r in batch.rollouts],
        "response_mask": [rollout.written_T.long() for rollout in batch.rollouts],
        "old_log_probs": [rollout.log_prob(batch.old_VF) for rollout in batch.rollouts],
        "ref_log_prob": [rollout.log_prob(batch.ref_VF) for rollout in batch.rollouts],
        "rm_scores": [outcome_at_the_end(rollout) for rollout in batch.rollouts],
        "features": [rollout.features_TF for rollout in batch.rollouts],
    }
    nested["loss_mask"] = nested["response_mask"]
    data = TensorDict(
        {key: torch.nested.as_nested_tensor(value, layout=torch.jagged) for key, value in nested.items()},
        batch_size=len(batch.rollouts),
    )
    proto = DataProto(batch=data.select("response_mask", "rm_scores").to_padded_tensor())
    proto.batch["token_level_rewards"] = proto.batch["rm_scores"]
    proto.non_tensor_batch["uid"] = np.array([rollout.uid for rollout in batch.rollouts], dtype=object)
    keys = [f"{rollout.uid}_{i}_0" for i, rollout in enumerate(batch.rollouts)]
    objective = {"normalizer": "group", "standardize": True, "shuffle_rewards": False} | settings
    proto = compute_advantage_for_multi_trajectories(
        proto,
        batch_keys=keys,
        adv_estimator=estimator,
        norm_adv_by_std_in_grpo=objective["standardize"],
        config={"samr1": objective},
    )
    for name in ("advantages", "returns"):
        data[name] = response_to_nested(proto.batch[name], data["response_mask"])
    return data


def outcome_at_the_end(rollout: Rollout) -> torch.Tensor:
    scores_T = torch.zeros(len(rollout.tokens_T))
    scores_T[-1] = rollout.reward
    return scores_T


def forward(data: TensorDict, policy_VF: torch.Tensor) -> dict[str, torch.Tensor]:
    """The engine's model output: log-probs of all tokens, prompt and response, each one position early, as in verl."""
    rows = []
    for features, tokens in zip(data["features"].unbind(), data["responses"].unbind(), strict=True):
        prompt = torch.zeros(PROMPT - 1, dtype=torch.float64)
        response = Rollout("", 0.0, features, tokens, torch.ones_like(tokens)).log_prob(policy_VF)
        rows.append(torch.cat([prompt, response, torch.zeros(1, dtype=torch.float64)]))
    return {"log_probs": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}


def update(
    batch: Batch,
    data: TensorDict,
    loss_fn: Callable,
    *,
    dp_size: int = 1,
    mini_batches: int = 1,
    micro_rows: int | None = None,
    max_tokens: int | None = None,
) -> list[tuple[float, torch.Tensor, list[dict]]]:
    """Each mini-batch's loss, gradient of the policy and micro-batches' metrics; the policy is not stepped in between.

    Micro-batches have `micro_rows` rows, or, for verl's dynamic ones, at most `max_tokens` tokens.
    """
    rows_of_rank = torch.arange(len(batch.rollouts)).chunk(dp_size)
    results = []
    for mini in range(mini_batches):
        shares = [tu.index_select_tensor_dict(data, rows.chunk(mini_batches)[mini]) for rows in rows_of_rank]
        tokens = sum(int(share["loss_mask"].values().sum()) for share in shares)
        loss_sum, gradient, metrics = 0.0, torch.zeros_like(batch.policy_VF), []
        for share in shares:
            tu.assign_non_tensor(
                share,
                dp_size=dp_size,
                batch_num_tokens=tokens,
                global_batch_size=len(batch.rollouts) // mini_batches,
                use_dynamic_bsz=max_tokens is not None,
                max_token_len_per_gpu=max_tokens,
                micro_batch_size_per_gpu=micro_rows or len(share),
            )
            for micro in prepare_micro_batches(share)[0]:
                loss, micro_metrics = loss_fn(model_output=forward(micro, batch.policy_VF), data=micro, dp_group=None)
                gradient += torch.autograd.grad(loss, batch.policy_VF)[0] / dp_size
                loss_sum += loss.item() / dp_size
                metrics.append(micro_metrics)
        results.append((loss_sum, gradient, metrics))
    return results
