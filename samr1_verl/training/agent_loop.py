"""verl's agent loops, which report why a rollout was lost.

verl logs the exception that ends a rollout in the worker's own log, and the trainer sees only that the group failed.
Here the worker also writes the message into the prompt's tag, where the trainer's guard reads it. It is set by

    actor_rollout_ref.rollout.agent.agent_loop_manager_class: samr1_verl.training.agent_loop.AgentLoopManager
"""

from __future__ import annotations

from typing import Any

import ray
import transfer_queue as tq
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from samr1_verl.training.guard import FAULT


@ray.remote
class AgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):  # verl has decorated its class
    """verl's worker; it also keeps the message of an exception that ends a rollout."""

    async def _run_agent_loop(self, sampling_params: dict, trajectory: dict, **kwargs: Any) -> Any:
        try:
            return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)
        except Exception as error:
            partition = "val" if trajectory["validate"] else "train"
            tag = {FAULT: f"{type(error).__name__}: {error}"}
            await tq.async_kv_put(key=kwargs["uid"], partition_id=partition, tag=tag)
            raise


class AgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with this file's workers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = AgentLoopWorker
