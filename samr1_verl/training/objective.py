"""The objective of SAM-R1 (arXiv 2505.22596): GRPO, an asymmetric clip, one normaliser for all tokens of a group.

For one prompt with rollouts o_1 … o_G, rewards r_i, and p_it the probability ratio of response token t:

    J = 1/Σ_i|o_i| · Σ_i Σ_t [ min(p_it·A_i, clip(p_it, 1-ε_low, 1+ε_high)·A_i) - β·D_KL(π_θ‖π_ref)_it ]
    A_i = (r_i - mean_j r_j) / (std_j r_j + 1e-6)

The loss is -J, averaged over the prompts that returned any token. verl's loss sees neither prompts nor groups, and its
mini-batches split groups. So two registered functions share the work:

- the advantage estimator `samr1` sees the whole rollout batch. It gives each token the weight w_i = B / (N·Σ_j|o_j|) of
  its group (B rows, verl's padding rows included; N groups that have tokens) and returns w_i·A_i;
- the policy loss `samr1` sums over tokens and divides by the rows of a mini-batch, verl's `global_batch_size`. min and
  clip commute with a positive factor, so that weighing A_i weighs the clipped term.

B / global_batch_size is the number M of mini-batches: the loss of a mini-batch is M/N · Σ_i 1/Σ_j|o_j| · Σ_t [...] over
its rows. What is exact, and what is not:

- exact: each group's policy term, for any split into mini-batches, micro-batches and data-parallel ranks. The loss of a
  mini-batch of whole groups is the mean over them (times M·n/N for n of N groups); the mean over mini-batches is -J;
- exact: a lost rollout is missing from its group's mean, standard deviation and token count alike;
- the KL term is added by verl, outside the policy loss, with `actor.loss_agg_mode`. `trainer.v1.trainer_mode: samr1`
  (trainer.py) gives the actor a loss that weighs it like the policy term: exact. Under verl's own trainers it is
  divided by the tokens of the mini-batch (`token-mean`) instead of the group's: a group of long answers then
  counts for more than one of short ones. Its coefficient has the same meaning either way.

Other normalisers, for ablations: `batch` is verl's `token-mean` (the tokens of a mini-batch), `sequence` its
`seq-mean-token-mean` (GRPO: the mean over rollouts of each one's mean).

Departures from verl's `grpo` and `vanilla`: the advantages of a group of one, or of equal rewards, are exactly 0 (verl
trains a group of one on its raw reward, and divides rounding errors by 1e-6); no dual clip unless `actor.clip_ratio_c`
is a number (the recipe sets null). Every row is one rollout: an agent loop that returns several rows a session is not
told apart. `returns`, otherwise read by a critic only, carries w_i.
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

# verl's own guard against division by zero, `compute_grpo_outcome_advantage`.
EPSILON = 1e-6

# verl's clamp of the log ratio, `compute_policy_loss_vanilla`.
MAX_LOG_RATIO = 20.0


def check_normalizer(value: object, key: str) -> str:
    """Return `value` if it names a normaliser; `key` is the configuration key to blame otherwise (ValueError)."""
    if value not in NORMALIZERS:
        raise ValueError(f"{key}: found {value!r}, expected one of {', '.join(NORMALIZERS)}. Set it in the recipe.")
    return str(value)


@dataclass
class PolicyLossConfig(VerlPolicyLossConfig):
    """verl's `actor.policy_loss` with the normaliser beside it, for verl hands a policy loss nothing but `actor`.

    A recipe selects it with `policy_loss._target_: samr1_verl.training.objective.PolicyLossConfig`.
    """

    normalizer: str = "???"

    def __post_init__(self) -> None:
        check_normalizer(self.normalizer, "actor_rollout_ref.actor.policy_loss.normalizer")


def group_of_each_row(uids_B: np.ndarray) -> torch.Tensor:
    """Number the prompts 0 … N-1 in the order their first row appears: int64, shape (B,)."""
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(uid, len(numbers)) for uid in uids_B], dtype=torch.int64)


def shuffle_within_groups(rewards_B: torch.Tensor, mask_BT: torch.Tensor, groups_B: torch.Tensor) -> torch.Tensor:
    """The control of a training run: every group keeps its rewards, but which rollout earned which is lost.

    The permutations are drawn from a generator seeded with the batch's own rewards, token counts and grouping. (verl's
    uids are drawn anew in every run, and an estimator is told neither the seed nor the step.) The same rows in the same
    order are shuffled in the same way, in a repeated or resumed run; a batch that differs anywhere is shuffled
    independently of it.
    """
    content = torch.stack([rewards_B, mask_BT.sum(-1).double(), groups_B.double()]).cpu().numpy().tobytes()
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest(), "big"))
    shuffled_B = rewards_B.clone()
    for group in groups_B.unique():
        rows = (groups_B == group).nonzero().squeeze(-1)
        shuffled_B[rows] = rewards_B[rows[torch.from_numpy(generator.permutation(len(rows))).to(rows.device)]]
    return shuffled_B


def group_advantages(rewards_B: torch.Tensor, groups_B: torch.Tensor, standardize: bool) -> torch.Tensor:
    """A_i of every rollout: its reward minus its group's mean, over the group's standard deviation (n-1) plus 1e-6.

    Args:
        rewards_B: float64, one scalar reward per rollout, finite.
        groups_B: int64, the group of each rollout, 0 … N-1.
        standardize: whether to divide by the standard deviation.

    Returns:
        float64, shape (B,). Exactly 0 throughout a group of one or of equal rewards.
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

    (`batch` divides by the tokens of a mini-batch instead, which only the loss knows: its weights are 1.)

    Args:
        mask_BT: bool, true where a response token counts. Padding rows have none.
        groups_B: int64, the group of each row.
        normalizer: one of NORMALIZERS.

    Returns:
        float64, shape (B,); 0 for rows whose normaliser is 0.
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
    """verl's hook: each token's advantage times its weight, and the weight alone.

    Args:
        token_level_rewards: float, shape (B, T). A rollout's reward is the sum of its row.
        response_mask: int or bool, shape (B, T).
        config: verl's `algorithm` section; reads normalizer, standardize and shuffle_rewards under `samr1`.
        index: shape (B,), the prompt's uid of each row; rows of one uid are a group.

    Returns:
        w_i·A_i and w_i, both float32 of shape (B, T), 0 where the mask is.

    Raises:
        ValueError: a reward that is not finite; `algorithm.samr1` absent or wrong.
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
    """A micro-batch's part of its mini-batch's loss, times dp_size because the engine averages gradients over ranks.

    Args:
        values_BT: each token's loss, times its weight.
        mask_BT: bool.
        normalizer: one of NORMALIZERS.
        batch_info: verl's `global_batch_info`: dp_size, batch_num_tokens, global_batch_size.
    """
    name = "batch_num_tokens" if normalizer == "batch" else "global_batch_size"
    divisor = batch_info.get(name)
    if divisor is None:
        raise ValueError(
            f"global_batch_info.{name}: found None, expected the mini-batch's number. Call the loss through verl's "
            "ppo_loss, which sets it."
        )
    # A mini-batch can hold nothing but verl's padding when prompts were lost: no tokens, and nothing to learn.
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
    """verl's hook: the clipped policy term of a micro-batch of B rows and T response tokens.

    Args:
        old_log_prob, log_prob: float (B, T), before and during the update.
        advantages: float (B, T), from the estimator `samr1`: the weights are in them.
        response_mask: bool (B, T).
        loss_agg_mode: ignored; the normaliser is `config.policy_loss.normalizer`.
        config: verl's actor configuration: clip_ratio_low, clip_ratio_high, clip_ratio_c, global_batch_info.
        rollout_is_weights: optional (B, T), verl's correction of the rollout engine's probabilities.

    Returns:
        The loss, and metrics as means over the micro-batch's tokens, named `actor/…`: ppo_kl and the shares clipped on
        either side (pg_clipfrac), above 1+ε_high (pg_clipfrac_high) and below 1-ε_low (pg_clipfrac_low); with the dual
        clip also what verl calls pg_clipfrac_lower. verl logs their mean over micro-batches, mini-batches and ranks.
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
