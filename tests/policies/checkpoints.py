"""Checkpoints as verl and peft write them, made from the tiny policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import AutoModelForImageTextToText

WORLD = 2


def without_weights(policy: Path, folder: Path) -> Path:
    """Configuration, tokenizer and processor of a policy."""
    return Path(shutil.copytree(policy, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.md")))


def write_shard(rank: int, policy: str, actor: str, rendezvous: str) -> None:
    """One rank's shard of a policy's weights, as FSDP2 keeps them. Runs in a process of its own."""
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("fsdp",))
    weights = AutoModelForImageTextToText.from_pretrained(policy).state_dict()
    shards = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in weights.items()}
    torch.save(shards, Path(actor) / f"model_world_size_{WORLD}_rank_{rank}.pt")
    torch.distributed.destroy_process_group()


def sharded_run(policy: Path, run: Path, step: int) -> Path:
    """A run whose only checkpoint holds the shards of two workers and no merged weights; its `actor` folder."""
    actor = run / f"global_step_{step}" / "actor"
    without_weights(policy, actor / "huggingface")
    (run / "latest_checkpointed_iteration.txt").write_text(str(step))
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": WORLD}))
    arguments = (str(policy), str(actor), str(run / "rendezvous"))
    torch.multiprocessing.spawn(write_shard, arguments, nprocs=WORLD)
    return actor


def adapted(policy: Path) -> PeftModel:
    """A policy with LoRA on its attention, strong enough to change its answers."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(policy)
    found = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    for name, weight in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return found


def write_adapter(policy: Path, folder: Path) -> Path:
    """The adapter alone, as peft saves it."""
    adapted(policy).save_pretrained(folder)
    return folder


def lora_run(policy: Path, run: Path) -> Path:
    """A checkpoint of a LoRA training on one GPU, as verl writes it, hf_model under peft's names included."""
    actor = run / "global_step_1" / "actor"
    without_weights(policy, actor / "huggingface")
    weights = adapted(policy).state_dict()
    torch.save(weights, actor / "model_world_size_1_rank_0.pt")
    save_file(weights, actor / "huggingface" / "model.safetensors", metadata={"format": "pt"})
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    (actor / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}))
    return actor


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
