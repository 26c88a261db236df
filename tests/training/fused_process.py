"""verl's engine with and without fused log-probs, in two processes: what test_fused_log_probs.py compares.

verl patches transformers' classes for good, so the engines are built in processes of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

RANKS = 2
TEMPERATURE = 0.7
VOCABULARY, IMAGE, START = 96, 90, 91  # size, and ids of the image's tokens


@dataclass(frozen=True)
class Case:
    """A policy: its family, whether input and output embeddings are one matrix, an adapter's rank, its dtype."""

    family: str
    tied: bool
    lora_rank: int = 0
    dtype: str = "fp32"


@dataclass(frozen=True)
class Measured:
    """Log-probs and entropies of a batch's tokens, and the gradients of the whole parameters by name: of rank 0."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    gradients: dict[str, torch.Tensor]


def save_policy(case: Case, folder: Path) -> None:
    """A randomly initialised policy of two narrow layers, without a tokenizer, in the hub's format."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    text = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": case.tied, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    ids = {"image_token_id": IMAGE, "video_token_id": 92, "vision_start_token_id": START, "vision_end_token_id": 93}
    torch.manual_seed(0)
    if case.family == "qwen2_5_vl":
        vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=case.tied, **ids)
        model = Qwen2_5_VLForConditionalGeneration(config)
    else:
        vision |= {"patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=case.tied, **ids)
        model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():  # logits of some size, so that log-probs differ between tokens
        model.get_output_embeddings().weight.mul_(4 if case.tied else 20)
    model.save_pretrained(folder)


def batch(case: Case, rank: int) -> Any:
    """Three rows of different lengths, one image each, as a training worker receives them; every rank has its own."""
    from tensordict import NonTensorData, NonTensorStack, TensorDict

    generator = torch.Generator().manual_seed(7 + rank)
    columns: dict[str, list[torch.Tensor]] = {"input_ids": [], "position_ids": [], "loss_mask": []}
    images = []
    patch = 3 * 2 * (14 if case.family == "qwen2_5_vl" else 16) ** 2
    for length in (9, 14, 11):
        words = torch.randint(2, 80, (length,), generator=generator)
        ids = torch.cat([torch.tensor([START, *[IMAGE] * 4]), words])
        columns["input_ids"].append(ids)
        columns["position_ids"].append(torch.arange(len(ids)).expand(4, -1).contiguous())
        columns["loss_mask"].append((ids < 80).long())
        pixels = torch.randn(16, patch, generator=generator)
        images.append({"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]])})
    nested = {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in columns.items()}
    data = TensorDict(nested, batch_size=len(images))
    data["multi_modal_inputs"] = NonTensorStack(*[NonTensorData(image) for image in images])
    for key, value in {
        "temperature": TEMPERATURE, "pad_token_id": 0, "use_remove_padding": False, "calculate_entropy": True,
        "use_dynamic_bsz": False, "micro_batch_size_per_gpu": 3, "dp_size": RANKS,
    }.items():  # fmt: skip
        data[key] = NonTensorData(value)
    return data


def loss(model_output: dict[str, Any], data: Any, dp_group: Any, kept: list[torch.Tensor]) -> tuple[torch.Tensor, dict]:
    """A function of log-probs and entropies whose gradient differs from token to token; `kept` gets their values."""
    mask = data["loss_mask"].values().clone()
    mask[data["input_ids"].offsets()[1:] - 1] = 0  # the last token of a row has no next token
    weights = torch.linspace(-1, 1, len(mask)) * mask
    log_probs, entropy = model_output["log_probs"].values().float(), model_output["entropy"].values().float()
    kept += [log_probs.detach() * mask, entropy.detach() * mask]
    return ((log_probs + 0.1 * entropy) * weights).sum(), {}


def measure(case: Case, folder: Path, fused: bool, rank: int) -> Measured:
    """Forward and backward through verl's FSDP2 engine."""
    from verl.trainer.config import CheckpointConfig
    from verl.utils import tensordict_utils as tu
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    model = HFModelConfig(
        path=str(folder),
        load_tokenizer=False,
        use_remove_padding=False,
        enable_gradient_checkpointing=True,
        override_config={"attn_implementation": "eager"},
        use_fused_kernels=fused,
        fused_kernel_options={"impl_backend": "torch"},
        lora_rank=case.lora_rank,
    )
    mixed = {"param_dtype": case.dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=model,
        engine_config=FSDPEngineConfig(strategy="fsdp2", use_torch_compile=False, mixed_precision=mixed),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )
    torch.manual_seed(0)  # an adapter is drawn at random
    engine.initialize()
    if case.lora_rank:  # verl's adapter starts as zero, so that half of its gradients are zero
        with torch.no_grad():
            for name, parameter in engine.module.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.05)
    data = batch(case, rank)
    tu.assign_non_tensor(data, use_fused_kernels=fused)
    with engine.train_mode():
        engine.optimizer_zero_grad()
        kept: list[torch.Tensor] = []
        engine.forward_backward_batch(data, loss_function=partial(loss, kept=kept), forward_only=False)
        gradients = {
            name: parameter.grad.full_tensor().clone()
            for name, parameter in engine.module.named_parameters()
            if parameter.grad is not None
        }
    return Measured(*kept, gradients)


def run_rank(rank: int, port: int, folders: dict[Case, Path], out: Path) -> None:
    """One process of the group. Rank 0 writes a dict: (case, path) to a Measured, or to the message of a failure.

    Paths: `padded`, whole logits; `fused`, what a run of ours does; `verl`, verl's own fused function.
    """
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    import verl  # noqa: F401  # registers the CPU engine
    from verl.models.transformers import qwen2_vl, qwen3_vl

    ours = {module: module.forward_with_torch_backend for module in (qwen2_vl, qwen3_vl)}
    torch.distributed.init_process_group("cpu:gloo")
    results: dict[tuple[Case, str], Measured | str] = {}
    for case, folder in folders.items():
        for path in ("padded", "fused", "verl"):
            for module, forward in ours.items():
                module.forward_with_torch_backend = (
                    getattr(forward, "__wrapped__", forward) if path == "verl" else forward
                )
            try:
                results[case, path] = measure(case, folder, path != "padded", rank)
            except Exception as error:  # for the test to look at
                results[case, path] = f"{type(error).__name__}: {error}"
    torch.distributed.destroy_process_group()
    if rank == 0:
        torch.save(results, out)
