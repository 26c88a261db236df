"""One data-parallel rank: verl's engine on its share of a rollout batch, started by test_engine.py as

python -m tests.training.objective.engine_process <folder> <rank> <world size>
"""

import json
import sys
from pathlib import Path

import torch
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import BaseEngine, EngineRegistry

from tests.training.objective.world import PROMPT, Batch, Rollout, estimate, exact_loss, make_batch

BETA = 0.05
VOCABULARY = 8  # of the language model; more than world.py's tokens need
SPLITS = (
    {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 1},
    {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 3},
    {"use_dynamic_bsz": True, "max_token_len_per_gpu": 17},
)


def rollout_batch() -> Batch:
    """Four groups of unequal size and length on twelve rows; one row is verl's padding."""
    rewards = [[6, 0, 3, 2], [4], [2, 2, 0], [1, 0, 5]]
    lengths = [[9, 1, 4, 6], [7], [1, 1, 1], [12, 2, 3]]
    return make_batch(rewards, lengths, rows=12, seed=5)


def anchors(rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """Old and reference log-probs of a rollout's tokens: some distance from those of a fresh, nearly uniform model."""
    generator = torch.Generator().manual_seed(int(1000 * rollout.features_TF.abs().sum()))
    old, ref = torch.rand(2, len(rollout.tokens_T), generator=generator) - 0.5
    return old - torch.tensor(VOCABULARY).log(), ref - torch.tensor(VOCABULARY).log()


def rows_for_update(batch: Batch) -> TensorDict:
    """What the trainer stores for the actor's update."""
    data = estimate(batch).exclude("features")
    for name, values in zip(
        ("old_log_probs", "ref_log_prob"), zip(*map(anchors, batch.rollouts), strict=True), strict=True
    ):
        data[name] = torch.nested.as_nested_tensor(list(values), layout=torch.jagged)
    positions = [torch.arange(PROMPT + len(rollout.tokens_T)) for rollout in batch.rollouts]
    data["position_ids"] = torch.nested.as_nested_tensor(positions, layout=torch.jagged)
    return data


def build_engine(model: Path) -> BaseEngine:
    fp32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=HFModelConfig(
            path=str(model),
            load_tokenizer=False,
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(strategy="fsdp2", use_torch_compile=False, mixed_precision=fp32),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=1),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


def whole(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def main(folder: Path, rank: int, world_size: int) -> None:
    torch.distributed.init_process_group(
        "cpu:gloo", init_method=f"file://{folder}/meeting{world_size}", rank=rank, world_size=world_size
    )
    engine = build_engine(folder / "model")
    assert engine.get_data_parallel_size() == world_size
    data = rows_for_update(rollout_batch())
    share = torch.arange(len(data)).chunk(world_size)[rank]
    results = []
    for split in SPLITS:
        rows = tu.index_select_tensor_dict(data, share)
        tu.assign_non_tensor(rows, global_batch_size=len(data), temperature=1.0, use_remove_padding=False, **split)
        with engine.train_mode():
            engine.optimizer_zero_grad()
            output = engine.forward_backward_batch(rows, exact_loss(BETA))
            loss = torch.tensor(sum(output["loss"]))
            torch.distributed.all_reduce(loss, op=torch.distributed.ReduceOp.AVG)
            gradients = {name: whole(p.grad).clone() for name, p in engine.module.named_parameters()}
        results.append({"loss": loss.item(), "micro_batches": len(output["loss"]), "gradients": gradients})
    if rank == 0:
        torch.save(results, folder / f"results{world_size}.pt")
        print(json.dumps([result["loss"] for result in results]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
