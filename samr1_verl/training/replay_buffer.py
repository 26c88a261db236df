"""verl's replay buffer with further training metrics: every component of the reward, the groups, and times.

verl logs the components of a reward at validation only. A recipe may replace the buffer that hands finished rollouts to
the training, and verl logs the metrics that the buffer returns:

    trainer.v1.sampler.custom_sampler: {path: pkg://samr1_verl.training.replay_buffer, name: ReplayBuffer}

The metrics of a step, over its rollouts without verl's padding rows:

    training/lost_rollouts             rollouts that failed and are missing from the step
    reward/<key>                       mean of a numeric key of the reward's dict: reward/acc, reward/answer/not_json, …
    critic/groups/zero_advantage_frac  share of groups with one rollout, or with equal rewards only
    critic/groups/count                number of prompts with at least one finished rollout
    critic/groups/size/mean, min       rollouts per group
    critic/groups/tokens/mean, max, min  response tokens per group
    reward/seconds/mean, max           seconds from a finished answer to its reward, queues included
    reward/exposed_seconds             seconds by which the rewards make the rollouts of the step longer
    reward/step_share                  exposed_seconds as a share of the time since the last step

With `algorithm.filter_groups.enable`, groups with equal rewards are replaced by groups of further prompts (DAPO's
dynamic sampling), and a step has in addition:

    critic/groups/drawn                      groups that were generated for the step
    critic/groups/drawn_zero_advantage_frac  share of them with equal rewards
    critic/groups/drawn_low_frac             share of them with equal rewards and no mask IoU above 0.5
    critic/groups/drawn_high_frac            share of them with equal rewards and all mask IoUs above 0.8
    critic/groups/useful                     groups of the batch with a gradient
    critic/groups/replaced_tokens            response tokens of the groups that were replaced
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import replay_buffer
from verl.utils import tensordict_utils as tu

from samr1_verl.scoring.turns import TURNS
from samr1_verl.training.draws import Draws
from samr1_verl.training.guard import Guard, LostRolloutsError
from samr1_verl.training.rollout_metrics import Rollouts
from samr1_verl.training.validation import Validated

POLL_S = 0.2  # seconds between two checks for finished rollouts; verl's 2 s are up to a sixth of a tiny recipe's step


class ReplayBuffer(replay_buffer.ReplayBuffer):
    """verl's buffer for synchronous trainers, with metrics of the rollouts that it hands out.

    verl builds a buffer that a recipe names without verl's own filters, and without the size of a group. The trainer
    `samr1` calls `filter_groups` and `watch` for that. Under another trainer the buffer only logs.

    Raises:
        ValueError: `trainer_mode` is not a synchronous one.
    """

    def __init__(self, trainer_mode: str, *args: Any, **kwargs: Any) -> None:
        if trainer_mode != "sync":
            raise ValueError(
                f"trainer.v1.trainer_mode: found {trainer_mode!r}, expected samr1 or sync with the sampler "
                "samr1_verl.training.replay_buffer.ReplayBuffer. Set the mode, or set "
                "trainer.v1.sampler.custom_sampler.path=null."
            )
        super().__init__(trainer_mode, *args, poll_interval=POLL_S, **kwargs)
        self._sampled: float | None = None  # time of the last batch for training, on the monotonic clock
        self._validated: dict[int, list[Validated]] = {}  # rows of the last validation, by its step
        self._draws: Draws | None = None  # of the step; None: no group is replaced
        self._guard: Guard | None = None
        self._numbers: Mapping[str, int] = {}
        self._whole_rounds = False
        self.refill_fn: Callable[[int], Any]  # verl's, which submits so many further prompts

    def filter_groups(
        self, metric: str | None, train_batch_size: int, max_batches: int, max_inflight: int, refill_failed: bool
    ) -> None:
        """Replace groups that teach nothing by groups of further prompts.

        Args:
            metric: groups with equal values of it are replaced: `reward`, or a key of the reward's dict; None: no group
                is replaced for its values.
            train_batch_size: prompts per step.
            max_batches: maximum number of prompts per step, in units of `train_batch_size`; then the step takes groups
                with equal values as well. 0: no maximum.
            max_inflight: maximum number of prompts that generate at once, in the same unit.
            refill_failed: replace groups without a finished rollout.
        """
        self.filter_groups_metric, self.sync_refill_failed_groups = metric, refill_failed
        self.train_batch_size, self.max_inflight_gen_batches = train_batch_size, max_inflight
        self.gen_batch_size = 1
        self._validate_mode_config()
        self._draws = Draws(train_batch_size, max_batches)
        submit, draws = self.refill_fn, self._draws

        def refill(prompts: int) -> None:
            if (allowed := draws.draw(prompts)) > 0:
                submit(allowed)

        self.refill_fn = refill

    def watch(self, guard: Guard) -> None:
        """Count lost rollouts, and end the run where `guard` says so."""
        self._guard = guard

    def order(self, numbers: Mapping[str, int], whole_rounds: bool) -> None:
        """Hand rollouts out in the order of submission.

        Args:
            numbers: AgentLoopManager.numbers.
            whole_rounds: replace groups only when no rollout runs any more, so that the number of prompts that are
                drawn together does not depend on who answered first. The step then takes longer.
        """
        self._numbers, self._whole_rounds = numbers, whole_rounds

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, Any]]:
        """verl's `sample`: the batch and verl's metrics, with the metrics of this file for a training batch.

        Raises:
            LostRolloutsError: more rollouts were lost than the run allows, or no rollout can finish any more.
            ValueError: an agent loop returned several rows for a rollout.
        """
        if self._draws is not None and partition_id == "train":
            self._draws.start()
        if self._guard is not None:
            self._guard.start()
        try:
            batch, metrics = super().sample(global_steps, partition_id, batch_size)
        except LostRolloutsError:
            raise
        except RuntimeError:  # verl's, where every rollout was lost, and without the fault
            if self._guard is not None and partition_id in (tags := tq.kv_list(partition_id) or {}):
                self._guard.read_faults(tags[partition_id])
                self._guard.check(partition_id, global_steps, batch_size, 0)
            raise
        _one_row_each(batch.keys)
        if self._guard is not None:
            metrics |= self._guard.check(partition_id, global_steps, batch_size, len(batch.keys))
        if partition_id == "train":
            rollouts = Rollouts.of(batch.keys, partition_id)
            metrics = {**metrics, **rollouts.metrics()}
            if self._draws is not None:
                metrics |= self._draws.metrics(rollouts.equal_groups(), len(set(rollouts.uids)))
            now, before = time.monotonic(), self._sampled
            if before is not None:
                metrics["reward/step_share"] = metrics["reward/exposed_seconds"] / (now - before)
            self._sampled = now
        else:
            self._validated = {global_steps: [*self._validated.get(global_steps, []), *validated(batch)]}
        return batch, metrics

    def _terminal_eviction_reasons(self, global_steps: int, partition_id: str) -> tuple[set, set, set, Counter]:
        """verl's groups to replace, at most as many as the step's maximum allows."""
        stale, equal, failed, values = super()._terminal_eviction_reasons(global_steps, partition_id)
        if self._draws is None or partition_id == "val":
            return stale, equal, failed, values
        self._draws.fail(len(failed))
        replaced = sorted(equal, key=self._number)[: self._draws.replace(len(equal))]
        return stale, set(replaced), failed, values

    def _evict_terminal_groups(self, global_steps: int, partition_id: str, reasons: Any) -> Any:
        if self._draws is not None and (equal := reasons[1]):
            keys = [key for key in self.partitions[partition_id] if key.split("_")[0] in equal]
            discarded = Rollouts.of(keys, partition_id)
            self._draws.discard(discarded.equal_groups(), sum(discarded.tokens))
        return super()._evict_terminal_groups(global_steps, partition_id, reasons)

    def _sync_metadata_from_transfer_queue(self) -> None:
        """verl's snapshot; in whole rounds, a group counts as running until all have ended."""
        super()._sync_metadata_from_transfer_queue()
        running = self.running_keys["train"]
        if self._whole_rounds and self._draws is not None and (running or self.pending_keys["train"]):
            for ended in (self.finished_keys["train"], self.failure_keys["train"]):
                running |= ended
                ended.clear()

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        # a list in place of the set: verl's sort by step keeps its order
        return super()._select_prompt_uids(partition_id, sorted(sampleable_keys, key=self._number), batch_size)

    def _number(self, uid: str) -> int:
        return self._numbers.get(uid, 0)

    def _materialize_batch(self, partition_id: str, uids: list[str], snapshot: dict[str, dict]) -> KVBatchMeta:
        if self._guard is not None:  # verl clears the prompts' tags here
            self._guard.read_faults(tq.kv_list(partition_id)[partition_id])
        batch = super()._materialize_batch(partition_id, uids, snapshot)  # in the order in which rollouts finished
        if self._numbers:
            batch.reorder(sorted(range(len(batch.keys)), key=lambda row: self._place(batch.keys[row])))
        return batch

    def _place(self, key: str) -> tuple[int, int]:
        uid, session, _ = key.split("_")
        return self._number(uid), int(session)

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        if self._guard is not None:
            self._guard.poll(len(self.partitions[partition_id]) + len(self.pending_keys[partition_id]))
        return super()._wait_for_next_poll(partition_id, last_debug_time)

    def take_validated(self, global_steps: int) -> list[Validated]:
        """The rows of the validation at a step, which are then forgotten; empty: no such validation."""
        return self._validated.pop(global_steps, [])


def _one_row_each(keys: Sequence[str]) -> None:
    """Refuse agent loops with several rows per rollout: groups and metrics count rows. Keys: {uid}_{session}_{row}."""
    if more := [key for key in keys if not key.endswith("_0")]:
        raise ValueError(
            f"the agent loop returned several rows for a rollout (key {more[0]}), expected one: the objective and the "
            "metrics count rows. Use actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent"
        )


def validated(batch: KVBatchMeta) -> list[Validated]:
    """Fetch the responses, rows and scores of a validation batch from TransferQueue."""
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
            extra.get(TURNS, ()),
        )
        for row, response, extra in zip(rows, data["responses"], tu.get(data, "extra_fields"), strict=True)
    ]
