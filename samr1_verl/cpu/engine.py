"""verl's FSDP2 engine for policies on the CPU. The import of this module registers it."""

from __future__ import annotations

import dataclasses

import torch
from verl.workers.config import FSDPEngineConfig
from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead

FP32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")
class CPUEngine(FSDPEngineWithLMHead):
    """verl's engine with two differences.

    Models are not offloaded. verl keeps the reference model, and each model with `offload_policy`, in pinned host
    memory between uses; pinned memory needs an accelerator's driver, and here the device's memory is the host's memory.

    Without `fsdp_config.mixed_precision` the model computes in fp32, not in bf16. So the log-probs of a rollout in fp32
    equal the actor's log-probs to 1e-4.
    """

    engine_config: FSDPEngineConfig

    def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
        config = self.engine_config
        self.engine_config = dataclasses.replace(
            config, forward_only=False, offload_policy=False, mixed_precision=config.mixed_precision or FP32
        )
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = config
