"""Checks of a run's configuration and of the machine, before anything is started.

The preflight of every run and `samr1 doctor` use them. Each check takes a composed configuration and yields one message
per problem: the key, its value, the expected value, and the next step.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from samr1_verl.config import ACTOR, ROLLOUT
from samr1_verl.cpu import accelerator_present

# verl's keys on which the objective and the size of a step depend. verl does not check the types of its dataclasses.
VERL_KEYS: dict[str, Any] = {
    "data.train_batch_size": PositiveInt,
    "data.max_prompt_length": PositiveInt,
    "data.max_response_length": PositiveInt,
    f"{ACTOR}.clip_ratio_low": Annotated[float, Field(ge=0, lt=1)],
    f"{ACTOR}.clip_ratio_high": NonNegativeFloat,
    f"{ACTOR}.clip_ratio_c": Annotated[float, Field(gt=1)] | None,
    f"{ACTOR}.kl_loss_coef": NonNegativeFloat,
    f"{ACTOR}.use_kl_loss": bool,
    f"{ACTOR}.ppo_mini_batch_size": PositiveInt,
    f"{ACTOR}.ppo_epochs": PositiveInt,
    f"{ACTOR}.optim.lr": NonNegativeFloat,
    f"{ROLLOUT}.n": PositiveInt,
    f"{ROLLOUT}.temperature": PositiveFloat,
    "reward.num_workers": PositiveInt,
    "trainer.n_gpus_per_node": PositiveInt,
    "trainer.nnodes": PositiveInt,
    "trainer.total_epochs": PositiveInt,
    "trainer.save_freq": int,
    "trainer.test_freq": int,
}


def check_types(config: DictConfig) -> Iterator[str]:
    """The keys of verl that this plug-in reads exist, can be resolved, and have valid types and ranges."""
    for key, kind in VERL_KEYS.items():
        try:
            TypeAdapter(kind).validate_python(OmegaConf.select(config, key, throw_on_missing=True), strict=True)
        except OmegaConfBaseException as error:
            yield f"{key}: {str(error).splitlines()[0]}. Set it in the recipe or as {key}=…"
        except ValidationError as error:
            problem = error.errors()[0]
            yield f"{key}: {problem['msg']}, found {problem['input']!r}. Correct it in the recipe or as {key}=…"


def check_objective(config: DictConfig) -> Iterator[str]:
    """Estimator, loss and KL of the objective fit each other."""
    actor, algorithm = config.actor_rollout_ref.actor, config.algorithm
    chosen = {
        "algorithm.adv_estimator": algorithm.adv_estimator,
        f"{ACTOR}.policy_loss.loss_mode": actor.policy_loss.loss_mode,
    }
    uses_ours = "samr1" in chosen.values()
    if uses_ours and set(chosen.values()) != {"samr1"}:
        yield (
            f"{', '.join(f'{key} is {value}' for key, value in chosen.items())}: the loss needs the estimator's "
            "weights, so set both to samr1, or neither"
        )
    elif uses_ours and actor.policy_loss.get("normalizer") != algorithm.get("samr1", {}).get("normalizer"):
        yield (
            f"{ACTOR}.policy_loss.normalizer is {actor.policy_loss.get('normalizer')}, algorithm.samr1.normalizer is "
            f"{algorithm.get('samr1', {}).get('normalizer')}. Remove both overrides and set samr1.objective.normalizer"
        )
    if actor.kl_loss_coef and not actor.use_kl_loss:
        yield (
            f"{ACTOR}.kl_loss_coef is {actor.kl_loss_coef} without a reference model, so it has no effect. Set "
            f"{ACTOR}.use_kl_loss=true, or {ACTOR}.kl_loss_coef=0 to train without KL"
        )


def check_lengths(config: DictConfig) -> Iterator[str]:
    """A whole prompt and a whole answer fit the rollout engine."""
    needed = config.data.max_prompt_length + config.data.max_response_length
    limit = config.actor_rollout_ref.rollout.max_model_len
    if limit is not None and limit < needed:
        yield (
            f"{ROLLOUT}.max_model_len is {limit}, data.max_prompt_length + data.max_response_length are {needed}. "
            f"Set {ROLLOUT}.max_model_len={needed}"
        )


def check_micro_batches(config: DictConfig) -> Iterator[str]:
    """Each worker gets whole micro-batches of rollouts; verl itself checks it only after the first generation."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    workers = config.trainer.n_gpus_per_node * config.trainer.nnodes
    if actor.use_dynamic_bsz or actor.get("ulysses_sequence_parallel_size", 1) != 1:
        return
    batch, mini_batch = "data.train_batch_size", f"{ACTOR}.ppo_mini_batch_size"
    keys = {f"{ACTOR}.ppo_micro_batch_size_per_gpu": mini_batch, f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": batch}
    if actor.use_kl_loss:
        keys["actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu"] = batch
    for key, prompts in keys.items():
        size = OmegaConf.select(config, key)
        rollouts = OmegaConf.select(config, prompts) * rollout.n / workers
        if size and rollouts % size:
            yield (
                f"{key} is {size}, a worker gets {rollouts:g} rollouts at a time ({prompts} x {ROLLOUT}.n / workers). "
                "Set a size that divides them without remainder"
            )


# Rollouts of verl by the module and the extra that they need; `transformers` is ours.
ROLLOUTS = {
    "vllm": ("vllm", "pip install 'samr1-verl[vllm]'"),
    "sglang": ("sglang", "pip install 'verl[sglang]'"),
    "trtllm": ("tensorrt_llm", "pip install tensorrt-llm"),
}


def check_packages(config: DictConfig) -> Iterator[str]:
    """The packages of the chosen rollout and attention are installed."""
    yield from _rollout(config)
    attention = config.actor_rollout_ref.model.override_config.get("attn_implementation", "flash_attention_2")
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        yield (
            "actor_rollout_ref.model.override_config.attn_implementation is flash_attention_2 and flash-attn is not "
            "installed. Type: pip install flash-attn --no-build-isolation, or set it to sdpa with "
            "actor_rollout_ref.model.use_remove_padding=false"
        )


def _rollout(config: DictConfig) -> Iterator[str]:
    name, model = config.actor_rollout_ref.rollout.name, config.actor_rollout_ref.model
    if name == "transformers" and config.trainer.device != "cpu":
        yield (
            f"{ROLLOUT}.name is transformers, which is registered on a CPU only, and trainer.device is "
            f"{config.trainer.device}. Set {ROLLOUT}.name=vllm"
        )
    elif name == "transformers" and model.lora_rank and not model.lora.merge:
        yield (
            f"actor_rollout_ref.model.lora_rank is {model.lora_rank} and {ROLLOUT}.name "
            "transformers, which takes whole weights. Set actor_rollout_ref.model.lora.merge=true"
        )
    elif name in ROLLOUTS:
        module, command = ROLLOUTS[name]
        if importlib.util.find_spec(module) is None:
            yield f"{ROLLOUT}.name is {name}, which is not installed. Type: {command}"
    elif name != "transformers" and not model.external_lib:
        yield (
            f"{ROLLOUT}.name is {name}, expected {', '.join(ROLLOUTS)}, or transformers on a CPU. A rollout of your "
            "own is registered by the module that actor_rollout_ref.model.external_lib names"
        )


def check_place(config: DictConfig) -> Iterator[str]:
    """On a machine with GPUs the segmenter is where Ray knows of it."""
    segmenter = config.samr1.segmenter
    if config.trainer.device != "cpu" and segmenter.service.mode == "embedded" and segmenter.device != "cpu":
        yield (
            f"samr1.segmenter.service.mode is embedded and samr1.segmenter.device {segmenter.device} in a run on GPUs. "
            "Ray reserves no GPU for a reward worker. From Ray 2.60 on the worker sees all of them, so the segmenter "
            "takes the first one beside vLLM and FSDP, and another one in the task runner; before, it sees none and "
            "computes on one CPU core, for minutes a step. Set samr1.segmenter.service.mode=ray, or "
            "samr1.segmenter.device=cpu"
        )


def check_resources(config: DictConfig) -> Iterator[str]:
    """The accelerators that verl will reserve from Ray exist; for a cluster elsewhere: its address answers."""
    ray_init = config.ray_kwargs.ray_init
    address = ray_init.get("address") or os.environ.get("RAY_ADDRESS")
    if address and address not in ("auto", "local"):
        yield from _reachable(address)
        return
    if config.trainer.device == "cpu" and accelerator_present():
        yield (
            "trainer.device is cpu on a machine with an accelerator, so the CPU backend is not registered. Set "
            "VERL_PLATFORM=cpu in the environment, or use a recipe for GPUs"
        )
    wanted = config.trainer.n_gpus_per_node * config.trainer.nnodes
    declared = ray_init.get("num_gpus")
    devices = torch.accelerator.device_count() if declared is None else declared
    if address is None and config.trainer.nnodes == 1 and devices < wanted:
        yield (
            f"trainer.n_gpus_per_node is {wanted}, Ray will have {devices} GPUs (ray_kwargs.ray_init.num_gpus is "
            f"{declared}). "
            + (
                f"Set ray_kwargs.ray_init.num_gpus={wanted}: on the CPU it is the number of training workers"
                if config.trainer.device == "cpu"
                else "Set trainer.n_gpus_per_node to the number of GPUs here, or try +recipe=samr1_tiny without one"
            )
        )


def _reachable(address: str) -> Iterator[str]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError) as error:
        yield (
            f"ray_kwargs.ray_init.address (or RAY_ADDRESS): no Ray cluster answers at {address} ({error}). Start a "
            "cluster with ray start --head --port=6379, correct the address, or remove it to start Ray on this machine"
        )


def advice(config: DictConfig) -> Iterator[str]:
    """Warnings about valid settings that are rarely intended."""
    actor = config.actor_rollout_ref.actor
    updates = -(-config.data.train_batch_size // actor.ppo_mini_batch_size) * actor.ppo_epochs
    if updates == 1:
        yield (
            f"{ACTOR}.ppo_mini_batch_size={actor.ppo_mini_batch_size} makes one mini-batch of a rollout batch of "
            f"{config.data.train_batch_size}: the policy is updated once per step, its probability ratio is 1, and the "
            "clip range has no effect. The paper's asymmetric clip needs at least two mini-batches"
        )
    if actor.use_kl_loss and not actor.kl_loss_coef:
        yield (
            f"{ACTOR}.kl_loss_coef is 0 and use_kl_loss true: the reference model is loaded and run for nothing. Set "
            f"{ACTOR}.use_kl_loss=false"
        )
    if config.reward.num_workers > 1 and OmegaConf.select(config, "samr1.segmenter.service.mode") == "embedded":
        yield (
            f"reward.num_workers={config.reward.num_workers} with samr1.segmenter.service.mode=embedded: each worker "
            "loads its own segmenter and encodes images that other workers have encoded. Set reward.num_workers=1"
        )
