"""verl's agent loops, which report why a rollout was lost, and can repeat a run's rollouts.

verl logs the exception that ends a rollout in the worker's own log, and the trainer sees only that the group failed.
Here the worker also writes the message into the prompt's tag, where the trainer's guard reads it. With
`rollout.full_determinism` the rollouts are those of repeat.py. It is set by

    actor_rollout_ref.rollout.agent.agent_loop_manager_class: samr1_verl.training.agent_loop.AgentLoopManager
"""

from __future__ import annotations

from typing import Any

import ray
import transfer_queue as tq
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import register
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from samr1_verl.training import refine, repeat
from samr1_verl.training.guard import FAULT


@ray.remote
class AgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):  # verl has decorated its class
    """verl's worker with our agent loop; it also keeps the message of an exception that ends a rollout."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        register(refine.NAME)(refine.RefineAgentLoop)  # here: Ray copies this class, and no worker imports the file
        super().__init__(*args, **kwargs)
        rollout, trainer = self.rollout_config, self.config.trainer
        self.repeats = rollout.full_determinism
        if self.repeats:
            servers = trainer.nnodes * trainer.n_gpus_per_node if rollout.name in repeat.TOGETHER else 1
            self.llm_client: Any = repeat.Client(self.llm_client, servers, rollout.max_num_seqs)

    async def generate_sequences(self, batch: TensorDict) -> None:
        if self.repeats:
            uids, gathering = list(batch["uid"]), None
            if self.rollout_config.name in repeat.TOGETHER:
                validate = "validate" in batch and batch["validate"]
                n = self.rollout_config.val_kwargs.n if validate else self.rollout_config.n
                own = list(batch["__rollout_n__"]) if "__rollout_n__" in batch else [n] * len(uids)
                gathering = repeat.Gathering(int(sum(own)), self.llm_client.ask_together)
            repeat.call.set(({uid: number for number, uid in enumerate(uids)}, gathering))
        await super().generate_sequences(batch)

    async def _run_agent_loop(self, sampling_params: dict, trajectory: dict, **kwargs: Any) -> Any:
        try:
            if not self.repeats:
                return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)
            rollout = self._rollout(trajectory, kwargs["uid"], kwargs["session_id"])
            repeat.current.set(rollout)
            try:
                return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)
            finally:
                rollout.end()
        except Exception as error:
            partition = "val" if trajectory["validate"] else "train"
            tag = {FAULT: f"{type(error).__name__}: {error}"}
            await tq.async_kv_put(key=kwargs["uid"], partition_id=partition, tag=tag)
            raise

    def _rollout(self, trajectory: dict, uid: str, session: int) -> repeat.Rollout:
        numbers, gathering = repeat.call.get()
        where = bool(trajectory["validate"]), int(trajectory["step"]), int(trajectory["sample_index"]), int(session)
        seed = repeat.rollout_seed(self.rollout_config.seed, *where)
        name = "-".join(map(str, where)) + f"-{uid}"
        return repeat.Rollout(name, seed, (numbers[uid], session), gathering)


class AgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with this file's workers.

    Attributes:
        numbers: for every prompt that was submitted, by its uid, its place in the order of submission.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = AgentLoopWorker
        self.numbers: dict[str, int] = {}

    def generate_sequences(self, prompts: TensorDict) -> None:
        for uid in prompts["uid"]:
            self.numbers[uid] = len(self.numbers)
        super().generate_sequences(prompts)
