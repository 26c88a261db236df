"""verl's synchronous trainer with more metrics at validation, and with the KL term weighted like the policy term.

`trainer.v1.trainer_mode: samr1` is verl's `sync` with two additions. At each validation it logs the metrics and keeps
the samples of validation.py. And under the policy loss `samr1` the KL term is exact. verl adds the KL term outside the
policy loss, where no registered function has a token's weight. But trainers can be registered, and an actor takes a
loss from its trainer (`set_loss_fn`, which verl's trainers use for the critic). The loss of this trainer is verl's
`ppo_loss` without KL, plus

    β · 1/rows Σ_it w_it · D_KL(π_θ‖π_ref)_it        with w_it and the division by rows of objective.py

The weights are in `returns`, which the estimator `samr1` fills.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

from samr1_verl.config import ACTOR, samr1_config
from samr1_verl.training import checkpoints, replay_buffer
from samr1_verl.training.guard import Guard
from samr1_verl.training.objective import reduce_tokens
from samr1_verl.training.validation import SampleWriter, first_of_each, lost_rows, protocol_metrics

if TYPE_CHECKING:  # it imports verl's trainers, whose import loads this file
    from samr1_verl.training.agent_loop import AgentLoopManager


def actor_loss(
    config: ActorConfig,
    model_output: dict[str, torch.Tensor],
    data: TensorDict,
    dp_group: Any = None,
    *,
    kl_coef: float,
    kl_type: str,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's loss of a micro-batch plus β times the KL term, weighted per group.

    Args:
        config: verl's actor configuration with use_kl_loss false and the policy loss `samr1`.
        model_output: `log_probs`, nested, one value per token of prompt and response.
        data: the micro-batch as verl gives it to `ppo_loss`; reads `ref_log_prob` and `returns`, nested over responses.
        dp_group: passed on to verl.
        kl_coef: β.
        kl_type: verl's `kl_loss_type`; verl limits k3 (`low_var_kl`) to 10 per token.

    Returns:
        The loss (scalar), and verl's metrics; `kl_loss` is the mean over groups of the group's KL per token.
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
    """`actor_loss` for a composed verl configuration that trains with KL.

    Raises:
        ValueError: estimator and loss do not fit each other, or distillation is enabled.
    """
    actor = config.actor_rollout_ref.actor
    chosen = (config.algorithm.adv_estimator, actor.policy_loss.loss_mode)
    if chosen != ("samr1", "samr1"):
        raise ValueError(
            f"algorithm.adv_estimator is {chosen[0]!r}, {ACTOR}.policy_loss.loss_mode {chosen[1]!r}: the loss needs "
            "the estimator's weights. Set both to samr1, or neither."
        )
    if is_distillation_enabled(config.get("distillation")):
        raise ValueError(
            "distillation.enabled: found true, but the loss samr1 has no term for it. Set trainer.v1.trainer_mode=sync."
        )
    without_kl = copy.deepcopy(config)
    without_kl.actor_rollout_ref.actor.use_kl_loss = False
    actor_config = omega_conf_to_dataclass(without_kl.actor_rollout_ref.actor)
    return partial(actor_loss, config=actor_config, kl_coef=actor.kl_loss_coef, kl_type=actor.kl_loss_type)


@register_trainer("samr1")
class Trainer(PPOTrainerSync):
    """verl's trainer `sync` with gIoU, cIoU and samples at validation, and the exact KL term for the loss `samr1`."""

    def __init__(self, config: DictConfig) -> None:
        # verl reads the mode once more, to distinguish the synchronous from the asynchronous trainers.
        config.trainer.v1.trainer_mode = "sync"
        self._samr1 = samr1_config(config)
        self._saved: list[int] = []  # steps of this process's checkpoints that are kept
        self._unnamed: int | None = None  # step of a checkpoint that a run cannot resume from yet
        super().__init__(config)

    def _build_replay_buffer(self) -> replay_buffer.ReplayBuffer:
        buffer = super()._build_replay_buffer()
        if not isinstance(buffer, replay_buffer.ReplayBuffer):
            raise ValueError(
                f"trainer.v1.sampler.custom_sampler: found {type(buffer).__name__}, expected path "
                "pkg://samr1_verl.training.replay_buffer and name ReplayBuffer, as trainer.v1.trainer_mode is samr1"
            )
        config, groups = self.config, self.config.algorithm.filter_groups
        if groups.enable or config.trainer.v1.sampler.sync_refill_failed_groups:
            buffer.filter_groups(
                groups.metric if groups.enable else None,
                config.data.train_batch_size,
                groups.max_num_gen_batches,
                groups.get("max_inflight_gen_batches", 1),
                config.trainer.v1.sampler.sync_refill_failed_groups,
            )
        rollout = config.actor_rollout_ref.rollout
        self._guard = Guard(
            {"train": rollout.n, "val": rollout.val_kwargs.n},
            self._samr1.max_lost_share,
            self._samr1.progress_timeout_s,
        )
        buffer.watch(self._guard)
        return buffer

    def fit(self, agent_loop_manager: AgentLoopManager) -> None:
        """verl's `fit`, which ends when a worker dies, and whose batches do not depend on who answered first."""
        repeats = self.config.actor_rollout_ref.rollout.full_determinism
        self.replay_buffer.order(agent_loop_manager.numbers, whole_rounds=repeats)
        self._guard.add_workers("agent loop worker", agent_loop_manager.agent_loop_workers)
        self._guard.add_workers("reward worker", self.get_reward_handles() or [])
        for replica in self.llm_server_manager.get_replicas():
            self._guard.add_workers(f"rollout server of replica {replica.replica_rank}", replica.servers)
        super().fit(agent_loop_manager)

    def _save_checkpoint(self) -> None:
        """verl's checkpoint, which is named later, and the old ones removed then."""
        trainer, checkpoint = self.config.trainer, self.config.actor_rollout_ref.actor.checkpoint
        keep, trainer.max_actor_ckpt_to_keep = trainer.max_actor_ckpt_to_keep, None
        own, checkpoint.async_save = checkpoint.async_save, True  # verl's driver then leaves the name to others
        try:
            super()._save_checkpoint()
        finally:
            trainer.max_actor_ckpt_to_keep, checkpoint.async_save = keep, own
        self._unnamed = self.global_steps

    def _name_checkpoint(self) -> None:
        """Have runs resume from the last checkpoint, when everything else that its step leaves is on disk."""
        if self._unnamed is None:
            return
        for written in self._dump_futures:
            written.result()
        if board := self.logger.logger.get("tensorboard"):
            board.writer.flush()  # it keeps two minutes of metrics in memory
        folder, keep = Path(self.config.trainer.default_local_dir), self.config.trainer.max_actor_ckpt_to_keep
        checkpoints.name(folder, self._unnamed)
        self._saved.append(self._unnamed)
        self._unnamed = None
        if keep:
            checkpoints.remove(folder, self._saved[:-keep])
            self._saved = self._saved[-keep:]

    def on_step_begin(self) -> None:
        self._name_checkpoint()  # of the step before, whose metrics verl has logged meanwhile
        super().on_step_begin()

    def _shutdown_dump_executor(self) -> None:
        """verl's last act after the last step."""
        super()._shutdown_dump_executor()
        self._name_checkpoint()

    def on_init_end(self) -> None:
        super().on_init_end()
        actor = self.config.actor_rollout_ref.actor
        if actor.use_kl_loss and actor.policy_loss.loss_mode == "samr1":
            self.actor_rollout_wg.set_loss_fn(build_actor_loss(self.config))
        self._samples = SampleWriter(self._samr1, Path(self.config.trainer.default_local_dir), self.tokenizer)
        self._chosen = self._samples.chosen(self.val_dataset)

    def _validate(self) -> dict[str, float]:
        """verl's validation with our metrics. The thread of verl's own dumps writes the samples in the background."""
        metrics = super()._validate()
        rows = self.replay_buffer.take_validated(self.global_steps)
        lost = lost_rows(self.val_dataset, rows, self.config.actor_rollout_ref.rollout.val_kwargs.n)
        if kept := first_of_each(rows, self._chosen):
            self._dump_futures.append(self._dump_executor.submit(self._samples.write, kept, self.global_steps))
        return {**metrics, **protocol_metrics(rows, lost), "validation/lost_rollouts": float(len(lost))}
