"""The objective of SAM-R1 (arXiv 2505.22596): GRPO, an asymmetric clip, one normaliser for all tokens of a group.

For one prompt with rollouts o_1 … o_G, rewards r_i, and p_it the probability ratio of response token t:

    J = 1/Σ_i|o_i| · Σ_i Σ_t [ min(p_it·A_i, clip(p_it, 1-ε_low, 1+ε_high)·A_i) - β·D_KL(π_θ‖π_ref)_it ]
    A_i = (r_i - mean_j r_j) / (std_j r_j + 1e-6)

The loss is -J, averaged over the prompts that have any response token. verl's loss knows neither prompts nor groups,
and its mini-batches split groups. Therefore two registered functions share the work:

- the advantage estimator `samr1` has the whole rollout batch. It gives each token the weight w_i = B / (N·Σ_j|o_j|) of
  its group (B rows, verl's padding rows included; N groups that have tokens) and returns w_i·A_i;
- the policy loss `samr1` sums over tokens and divides by the rows of a mini-batch, verl's `global_batch_size`. min and
  clip commute with a positive factor, so a weight on A_i is a weight on the clipped term.

B / global_batch_size is the number M of mini-batches: the loss of a mini-batch is M/N · Σ_i 1/Σ_j|o_j| · Σ_t [...] over
its rows. Exactness:

- policy term: exact per group, for any split into mini-batches, micro-batches and data-parallel ranks. The loss of a
  mini-batch of whole groups is the mean over them (times M·n/N for n of N groups); the mean over mini-batches is -J;
- lost rollouts: exact; they count neither in their group's mean and standard deviation nor in its number of tokens;
- KL term: verl adds it outside the policy loss, with `actor.loss_agg_mode`. With `trainer.v1.trainer_mode: samr1`
  (trainer.py) the actor's loss weights it like the policy term, which is exact. Under verl's own trainers it is divided
  by the tokens of the mini-batch (`token-mean`) and not of the group, so a group of long answers has a larger weight
  than a group of short answers. The meaning of its coefficient is the same in both cases.

Other normalisers, for ablations: `batch` is verl's `token-mean` (divides by the tokens of a mini-batch), `sequence`
verl's `seq-mean-token-mean` (GRPO: the mean over rollouts of the mean over their tokens).

Differences to verl's `grpo` and `vanilla`:

- the advantages of a group with one rollout, or with equal rewards, are exactly 0. verl trains a group with one rollout
  on its raw reward, and divides rounding errors by 1e-6;
- there is no dual clip unless `actor.clip_ratio_c` is a number (the recipe sets null);
- every row counts as one rollout, also where an agent loop returns several rows per session;
- `returns`, which otherwise only a critic reads, holds w_i.

Legend: B rows (rollouts), T response tokens, G groups; a name's suffix gives its dimensions.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss
from verl.utils.torch_functional import masked_mean, masked_sum
from verl.workers.config import ActorConfig
from verl.workers.config import PolicyLossConfig as VerlPolicyLossConfig

NORMALIZERS = ("group", "batch", "sequence")

# Summand against division by zero, from verl's `compute_grpo_outcome_advantage`.
EPSILON = 1e-6

# Limit of the log ratio, from verl's `compute_policy_loss_vanilla`.
MAX_LOG_RATIO = 20.0


def check_normalizer(value: object, key: str) -> str:
    """Return `value` if it is one of NORMALIZERS. Otherwise raise ValueError, with the configuration key `key`."""
    if value not in NORMALIZERS:
        raise ValueError(f"{key}: found {value!r}, expected one of {', '.join(NORMALIZERS)}. Set it in the recipe.")
    return str(value)


@dataclass
class PolicyLossConfig(VerlPolicyLossConfig):
    """verl's `actor.policy_loss` with the normaliser: a policy loss of verl gets the `actor` configuration only.

    A recipe selects it with `policy_loss._target_: samr1_verl.training.objective.PolicyLossConfig`.
    """

    normalizer: str = "???"

    def __post_init__(self) -> None:
        check_normalizer(self.normalizer, "actor_rollout_ref.actor.policy_loss.normalizer")


def group_of_each_row(uids_B: np.ndarray) -> torch.Tensor:
    """The group of each row, int64 (B,): prompts are numbered 0 … N-1 in the order of their first rows.

    Args:
        uids_B: (B,), the uid of each row's prompt.
    """
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(uid, len(numbers)) for uid in uids_B], dtype=torch.int64)


def shuffle_within_groups(rewards_B: torch.Tensor, mask_BT: torch.Tensor, groups_B: torch.Tensor) -> torch.Tensor:
    """Rewards shuffled among the rollouts of each group, float64 (B,): the control of a training run.

    The seed of the permutations is a hash of the batch's rewards, token counts and groups, because an estimator gets
    neither the run's seed nor its step, and verl's uids differ in every run. So a repeated or resumed run shuffles the
    same rows in the same way, and a batch with any difference is shuffled independently.

    Args:
        rewards_B: float64. mask_BT: bool. groups_B: int64, as `group_of_each_row`.
    """
    content = torch.stack([rewards_B, mask_BT.sum(-1).double(), groups_B.double()]).cpu().numpy().tobytes()
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest(), "big"))
    shuffled_B = rewards_B.clone()
    for group in groups_B.unique():
        rows = (groups_B == group).nonzero().squeeze(-1)
        shuffled_B[rows] = rewards_B[rows[torch.from_numpy(generator.permutation(len(rows))).to(rows.device)]]
    return shuffled_B


def group_advantages(rewards_B: torch.Tensor, groups_B: torch.Tensor, standardize: bool) -> torch.Tensor:
    """A_i per rollout: the reward minus the group's mean, divided by the group's standard deviation (n-1) plus 1e-6.

    Args:
        rewards_B: float64, one scalar reward per rollout, finite.
        groups_B: int64, the group of each rollout, 0 … N-1.
        standardize: whether to divide by the standard deviation.

    Returns:
        float64 (B,); exactly 0 in a group with one rollout or with equal rewards.
    """
    advantages_B = torch.zeros_like(rewards_B)
    for group in groups_B.unique():
        rows = (groups_B == group).nonzero().squeeze(-1)
        rewards = rewards_B[rows]
        if len(rows) < 2 or bool((rewards == rewards[0]).all()):
            continue
        centred = rewards - rewards.mean()
        advantages_B[rows] = centred / (rewards.std() + EPSILON) if standardize else centred
    return advantages_B


def token_weights(mask_BT: torch.Tensor, groups_B: torch.Tensor, normalizer: str) -> torch.Tensor:
    """The weight of each rollout's tokens in a loss that sums over tokens and divides by the rows of a mini-batch.

    For `batch` the weights are 1: the loss divides by the tokens of a mini-batch, which only the loss knows.

    Args:
        mask_BT: bool, true where a response token counts; all false in padding rows.
        groups_B: int64, the group of each row.
        normalizer: one of NORMALIZERS.

    Returns:
        float64 (B,); 0 for rows whose normaliser is 0.
    """
    tokens_B = mask_BT.sum(-1).double()
    if normalizer == "batch":
        return torch.ones_like(tokens_B)
    if normalizer == "sequence":
        return torch.where(tokens_B > 0, 1 / tokens_B.clamp_min(1), 0)
    tokens_G = torch.zeros(int(groups_B.max()) + 1, dtype=torch.float64, device=mask_BT.device)
    tokens_G.index_add_(0, groups_B, tokens_B)
    used_groups = (tokens_G > 0).sum().clamp_min(1)
    weights_G = torch.where(tokens_G > 0, len(mask_BT) / (used_groups * tokens_G.clamp_min(1)), 0)
    return weights_G[groups_B]


@register_adv_est("samr1")
def compute_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, config: Mapping[str, Any], index: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """The advantage estimator that verl calls: the weighted advantage and the weight of each token.

    Args:
        token_level_rewards: float (B, T). A rollout's reward is the sum of its row.
        response_mask: int or bool (B, T).
        config: verl's `algorithm` section; reads normalizer, standardize and shuffle_rewards under `samr1`.
        index: (B,), the uid of each row's prompt; rows with the same uid are a group.

    Returns:
        w_i·A_i and w_i, both float32 (B, T), 0 outside the mask.

    Raises:
        ValueError: a reward is not finite, or `algorithm.samr1` is missing or invalid.
    """
    settings = config.get("samr1")
    if settings is None:
        raise ValueError(
            "algorithm.samr1: absent, expected normalizer, standardize and shuffle_rewards. Start from +recipe=samr1, "
            "which sets them."
        )
    normalizer = check_normalizer(settings.get("normalizer"), "algorithm.samr1.normalizer")
    mask_BT = response_mask.bool()
    rewards_B = token_level_rewards.double().sum(-1)
    if not bool(rewards_B.isfinite().all()):
        row = int((~rewards_B.isfinite()).nonzero()[0])
        raise ValueError(
            f"reward of row {row} (uid {index[row]}): found {rewards_B[row].item()}, expected a finite number. "
            "Look at what the reward function returned as `score`."
        )
    groups_B = group_of_each_row(index).to(rewards_B.device)
    if settings["shuffle_rewards"]:
        rewards_B = shuffle_within_groups(rewards_B, mask_BT, groups_B)
    advantages_B = group_advantages(rewards_B, groups_B, bool(settings["standardize"]))
    weights_BT = token_weights(mask_BT, groups_B, normalizer)[:, None] * mask_BT
    return (advantages_B[:, None] * weights_BT).float(), weights_BT.float()


def reduce_tokens(
    values_BT: torch.Tensor, mask_BT: torch.Tensor, normalizer: str, batch_info: Mapping[str, Any]
) -> torch.Tensor:
    """A micro-batch's part of its mini-batch's loss, times dp_size, because the engine averages gradients over ranks.

    Args:
        values_BT: float, the loss of each token times its weight.
        mask_BT: bool.
        normalizer: one of NORMALIZERS.
        batch_info: verl's `global_batch_info`: dp_size, batch_num_tokens, global_batch_size.

    Raises:
        ValueError: `batch_info` lacks the divisor.
    """
    name = "batch_num_tokens" if normalizer == "batch" else "global_batch_size"
    divisor = batch_info.get(name)
    if divisor is None:
        raise ValueError(
            f"global_batch_info.{name}: found None, expected the mini-batch's number. Call the loss through verl's "
            "ppo_loss, which sets it."
        )
    # After lost prompts a mini-batch may consist of verl's padding only: it has no tokens and no gradient.
    return masked_sum(values_BT, mask_BT) / max(divisor, 1) * batch_info["dp_size"]


@register_policy_loss("samr1")
def compute_policy_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str,
    config: ActorConfig,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The policy loss that verl calls: the clipped policy term of a micro-batch of B rows and T response tokens.

    Args:
        old_log_prob, log_prob: float (B, T), before and during the update.
        advantages: float (B, T), from the estimator `samr1`, weights included.
        response_mask: bool (B, T).
        loss_agg_mode: ignored; the normaliser is `config.policy_loss.normalizer`.
        config: verl's actor configuration: clip_ratio_low, clip_ratio_high, clip_ratio_c, global_batch_info.
        rollout_is_weights: optional (B, T), verl's correction of the rollout engine's probabilities.

    Returns:
        The loss (scalar), and metrics named `actor/…`, which are means over the micro-batch's tokens: ppo_kl, and the
        shares of tokens that are clipped on both sides (pg_clipfrac), above 1+ε_high (pg_clipfrac_high), below 1-ε_low
        (pg_clipfrac_low), and with the dual clip by it (pg_clipfrac_lower). verl logs their mean over micro-batches,
        mini-batches and ranks.
    """
    key = "actor_rollout_ref.actor.policy_loss.normalizer"
    normalizer = check_normalizer(config.policy_loss.get("normalizer"), key)
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high

    log_ratio = (log_prob - old_log_prob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
    clipped_high = (ratio > 1 + high) & (advantages > 0)
    clipped_low = (ratio < 1 - low) & (advantages < 0)
    metrics = {
        "actor/pg_clipfrac": clipped_high | clipped_low,
        "actor/pg_clipfrac_high": clipped_high,
        "actor/pg_clipfrac_low": clipped_low,
        "actor/ppo_kl": -log_ratio.detach(),
    }
    if config.clip_ratio_c is not None:
        bound = -advantages * config.clip_ratio_c
        metrics["actor/pg_clipfrac_lower"] = (losses > bound) & (advantages < 0)
        losses = torch.where(advantages < 0, torch.minimum(losses, bound), losses)
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    loss = reduce_tokens(losses, response_mask.bool(), normalizer, config.global_batch_info)
    return loss, {name: masked_mean(value.float(), response_mask).item() for name, value in metrics.items()}
