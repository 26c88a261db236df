"""verl's synchronous trainer with the KL term weighed like the policy term: `trainer.v1.trainer_mode: samr1`.

verl adds the KL term outside the policy loss, where no registered function sees a token's weight. But trainers can be
registered, and an actor takes a loss from its trainer (`set_loss_fn`, which verl's own use for the critic). This one
sends verl's `ppo_loss` without KL, plus

    β · 1/rows Σ_it w_it · D_KL(π_θ‖π_ref)_it        with w_it and the division by rows of samr1_verl/objective.py

The weights travel as `returns`, which the estimator `samr1` fills.
"""

import copy
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.trainer.distillation import is_distillation_enabled
from verl.trainer.ppo.core_algos import kl_penalty
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from samr1_verl.objective import reduce_tokens


def actor_loss(
    config: ActorConfig,
    model_output: dict[str, torch.Tensor],
    data: TensorDict,
    dp_group: Any = None,
    *,
    kl_coef: float,
    kl_type: str,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's loss of a micro-batch, and β times the KL term, weighed by group.

    Args:
        config: verl's actor configuration with use_kl_loss false and the policy loss `samr1`.
        model_output: `log_probs`, nested, one value per token of prompt and response.
        data: the micro-batch as verl gives it to `ppo_loss`; reads `ref_log_prob` and `returns`, nested over responses.
        dp_group: passed on to verl.
        kl_coef: β.
        kl_type: verl's `kl_loss_type`; its k3 (`low_var_kl`) is cut at 10 a token.

    Returns:
        The loss, and verl's metrics: `kl_loss` is the mean over groups of each one's KL per token.
    """
    loss, metrics = ppo_loss(config=config, model_output=model_output, data=data, dp_group=dp_group)
    log_prob = no_padding_2_padding(model_output["log_probs"], data)
    padded = data.select("response_mask", "ref_log_prob", "returns").to_padded_tensor()
    kl = kl_penalty(logprob=log_prob, ref_logprob=padded["ref_log_prob"], kl_penalty=kl_type)
    kl_loss = reduce_tokens(
        kl * padded["returns"], padded["response_mask"].bool(), config.policy_loss.normalizer, config.global_batch_info
    )
    metrics["kl_loss"] = Metric(value=kl_loss, aggregation=AggregationType.SUM)
    metrics["kl_coef"] = kl_coef
    return loss + kl_coef * kl_loss, metrics


def build_actor_loss(config: DictConfig) -> partial:
    """`actor_loss` for a whole verl configuration that trains with KL; ValueError where it cannot be right."""
    actor = config.actor_rollout_ref.actor
    chosen = (config.algorithm.adv_estimator, actor.policy_loss.loss_mode)
    if chosen != ("samr1", "samr1"):
        raise ValueError(
            f"trainer.v1.trainer_mode is samr1, but algorithm.adv_estimator is {chosen[0]!r} and "
            f"actor_rollout_ref.actor.policy_loss.loss_mode {chosen[1]!r}. Set both to samr1, or the mode to sync."
        )
    if is_distillation_enabled(config.get("distillation")):
        raise ValueError("distillation.enabled: found true, but the mode samr1 has no teacher. Set trainer_mode: sync.")
    without_kl = copy.deepcopy(config)
    without_kl.actor_rollout_ref.actor.use_kl_loss = False
    actor_config = omega_conf_to_dataclass(without_kl.actor_rollout_ref.actor)
    return partial(actor_loss, config=actor_config, kl_coef=actor.kl_loss_coef, kl_type=actor.kl_loss_type)


@register_trainer("samr1")
class Trainer(PPOTrainerSync):
    """verl's trainer `sync` with another loss."""

    def __init__(self, config: DictConfig) -> None:
        # verl asks for the mode again, to tell the synchronous trainer from the asynchronous ones.
        config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)

    def on_init_end(self) -> None:
        super().on_init_end()
        if self.config.actor_rollout_ref.actor.use_kl_loss:
            self.actor_rollout_wg.set_loss_fn(build_actor_loss(self.config))
