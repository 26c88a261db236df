"""The values of a recipe that a rehearsal replaces, each with its reason. All other keys keep the recipe's values."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from samr1_verl.config import ACTOR, ROLLOUT, ConfigError
from samr1_verl.preflight.checks import check_micro_batches

REF = "actor_rollout_ref.ref"
RAY = "ray_kwargs.ray_init"
ROLLOUTS = 32  # per step, at least
RATE, ADAPTER_RATE = 1.0e-4, 1.0e-3  # learning rates, see `shared`; an adapter starts as a product with zero
LONGEST_ANSWER = 512  # tokens, without a GPU; the lessons have about 230 to 300
LONGEST_TURN = 256  # tokens, without a GPU, of a dialogue's turn
STEPS = 2  # of the first start; the second start resumes and trains one more
LOCAL_LOGGERS = ("console", "tensorboard", "file")
FP32 = "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"


@dataclass(frozen=True)
class Replacement:
    """One replaced value. `value` is in Hydra's notation."""

    key: str
    found: Any
    value: str
    reason: str

    @property
    def override(self) -> str:
        return f"++{self.key}={self.value}"


class Replacements:
    """Collects replacements for a composed recipe; a value that is there already is not replaced."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.made: list[Replacement] = []

    def set(self, key: str, value: Any, reason: str) -> None:
        """Replace the value of a key. value: None, a bool, number, Path, list, or text in Hydra's notation."""
        found = OmegaConf.select(self.config, key)
        text = _hydra(value)
        new = OmegaConf.create(f"x: {text}").x
        if found == new:
            return
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        self.made.append(Replacement(key, found, text, reason))
        OmegaConf.update(self.config, key, new, force_add=True)


def shared(replacements: Replacements, run: Path) -> None:
    """What every rehearsal replaces: lengths of the run, its places, and keys that make its effects visible."""
    config, put = replacements.config, replacements.set
    why = "three steps, validated before the first, after the second and after the resume"
    put("trainer.total_training_steps", STEPS, why)
    put("trainer.total_epochs", 100, why)
    put("trainer.save_freq", STEPS, why)
    put("trainer.test_freq", STEPS, why)
    put("trainer.val_before_train", True, why)
    put("trainer.resume_mode", "auto", why)
    _batches(replacements)
    put("data.val_max_samples", 4, "few validation rows")
    rate = ADAPTER_RATE if config.actor_rollout_ref.model.get("lora_rank", 0) else RATE
    put(f"{ACTOR}.optim.lr", rate, "one update must change the answers, or a stale rollout would not be seen")
    put(f"{ACTOR}.optim.lr_warmup_steps", 0, "the first update must have its full size")
    put(f"{ROLLOUT}.calculate_log_probs", True, "the rollout's log-probs are compared with the actor's")
    why = "greedy answers are compared before and after an update, and after the resume"
    put(f"{ROLLOUT}.val_kwargs.do_sample", False, why)
    put(f"{ROLLOUT}.val_kwargs.temperature", 0, why)
    put(f"{ROLLOUT}.val_kwargs.n", 1, why)
    put("trainer.default_local_dir", run, "the rehearsal's own folder")
    put("trainer.validation_data_dir", run / "validation", why)
    put("samr1.segmenter.service.cache_dir", None, "the stand-in's embeddings are of no use later")
    loggers = [name for name in config.trainer.logger if name in LOCAL_LOGGERS]
    why = "the rehearsal reads a file, and reports to no server"
    put("trainer.logger", [*loggers, *({"file"} - set(loggers))], why)


def _batches(replacements: Replacements) -> None:
    """The smallest step with ROLLOUTS rollouts, the recipe's updates per step and whole micro-batches."""
    config, actor = replacements.config, replacements.config.actor_rollout_ref.actor
    updates = max(1, config.data.train_batch_size // actor.ppo_mini_batch_size)
    original = (config.data.train_batch_size, actor.ppo_mini_batch_size)
    smallest = math.ceil(ROLLOUTS / config.actor_rollout_ref.rollout.n / updates)
    for mini in range(min(smallest, original[1]), original[1] + 1):
        config.data.train_batch_size, actor.ppo_mini_batch_size = mini * updates, mini
        if not list(check_micro_batches(config)):
            break
    chosen = (config.data.train_batch_size, actor.ppo_mini_batch_size)
    config.data.train_batch_size, actor.ppo_mini_batch_size = original
    why = f"fewer prompts, the same number of updates per step ({updates}), rollouts per prompt and micro-batches"
    replacements.set("data.train_batch_size", chosen[0], why)
    replacements.set(f"{ACTOR}.ppo_mini_batch_size", chosen[1], why)


def without_gpu(replacements: Replacements, asked: Sequence[str]) -> None:
    """What a machine without an accelerator needs. asked: the user's overrides; an own choice of the rollout is kept.

    Raises:
        ConfigError: a part of the recipe has no counterpart on a CPU.
    """
    config, put = replacements.config, replacements.set
    if (strategy := config.actor_rollout_ref.actor.strategy) != "fsdp2":
        raise ConfigError(
            "strategy_needs_gpu",
            f"{ACTOR}.strategy",
            f"found {strategy}, and only fsdp2 runs without a GPU. Rehearse where GPUs are",
        )
    why = "without a GPU"
    put("trainer.device", "cpu", why)
    put("trainer.n_gpus_per_node", 1, f"{why}: one training worker")
    put("trainer.nnodes", 1, f"{why}: one training worker")
    put(f"{RAY}.num_gpus", 1, f"{why}: the number of training workers on the CPU")
    put(f"{RAY}.num_cpus", 16, "more than there are, because verl's processes wait most of the time")
    put(f"{RAY}.include_dashboard", False, "saves memory")
    put(f"{RAY}.runtime_env.env_vars.OMP_NUM_THREADS", f"'{min(8, os.cpu_count() or 1)}'", f"{why}: Ray's default is 1")
    put(f"{RAY}.runtime_env.env_vars.OMP_WAIT_POLICY", "passive", "waiting threads must not take time from the others")
    _lengths_without_gpu(replacements)
    put("transfer_queue.backend.SimpleStorage.num_data_storage_units", 1, "saves memory")
    for part in (ACTOR, REF):
        put(f"{part}.use_torch_compile", False, f"{why}: saves minutes of compilation")
        put(f"{part}.fsdp_config.mixed_precision", FP32, f"{why}: fp32")
        put(f"{part}.fsdp_config.model_dtype", "fp32", f"{why}: fp32")
        put(f"{part}.fsdp_config.param_offload", False, f"{why}: nothing to offload from")
    put(f"{ACTOR}.fsdp_config.optimizer_offload", False, f"{why}: nothing to offload from")
    put("actor_rollout_ref.model.use_remove_padding", False, f"{why}: packed sequences need flash-attn")
    put("actor_rollout_ref.model.override_config.attn_implementation", "sdpa", f"{why}: no flash-attn")
    put(f"{ROLLOUT}.dtype", "float32", f"{why}: fp32")
    put(f"{ROLLOUT}.tensor_model_parallel_size", 1, f"{why}: one training worker")
    put(f"{ROLLOUT}.agent.num_workers", 1, "saves memory")
    if config.actor_rollout_ref.model.get("lora_rank", 0):
        put("actor_rollout_ref.model.lora.merge", True, f"{why}: the rollout takes merged weights, not the adapter")
    if config.samr1.segmenter.service.get("ray") is not None:
        put("samr1.segmenter.service.ray.gpus", 0, f"{why}: the segmenter runs on the CPU")
    put("samr1.segmenter.device", "cpu", why)
    if config.samr1.segmenter.get("encoder_precision") == "tf32":
        put("samr1.segmenter.encoder_precision", "float32", f"{why}: TF32 is a GPU's")
    if any(override.lstrip("+") == f"{ROLLOUT}.name=vllm" for override in asked):
        _vllm_without_gpu(replacements)
    else:
        put(f"{ROLLOUT}.name", "transformers", f"{why}; {ROLLOUT}.name=vllm rehearses vLLM's CPU build")


def _lengths_without_gpu(replacements: Replacements) -> None:
    config, why = replacements.config, "without a GPU: an answer that does not end would take minutes"
    length, refine = config.data.max_response_length, config.samr1.get("refine")
    if refine is None:
        replacements.set("data.max_response_length", min(LONGEST_ANSWER, length), why)
        return
    turn = min(LONGEST_TURN, refine.turn_tokens)
    less = refine.max_turns * (refine.turn_tokens - turn)
    replacements.set("samr1.refine.turn_tokens", turn, why)
    replacements.set("data.max_response_length", length - less, "without a GPU: as much less as its turns have less")


def _vllm_without_gpu(replacements: Replacements) -> None:
    put, why = replacements.set, "vLLM's CPU build"
    put(f"{ROLLOUT}.load_format", "dummy", f"{why}: the trainer sends the weights before the first answer")
    put(f"{ROLLOUT}.enforce_eager", True, f"{why}: nothing to capture")
    put(f"{ROLLOUT}.enable_sleep_mode", False, f"{why}: sleep needs CUDA's virtual memory")
    put(f"{ROLLOUT}.free_cache_engine", False, f"{why}: sleep needs CUDA's virtual memory")
    put(f"{ROLLOUT}.max_num_seqs", 64, f"{why}: saves memory")
    put(f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes", 64, "this much shared memory per update")


def files_of(config: DictConfig, key: str) -> list[Path]:
    """The data files of `data.train_files` or `data.val_files`."""
    value = OmegaConf.select(config, f"data.{key}")
    values = value if isinstance(value, list | ListConfig) else [value]
    return [Path(str(file)).expanduser() for file in values]


def environment(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Variables of the environment for the training of a rehearsal without a GPU."""
    yield "VERL_PLATFORM", "cpu"
    # bytes. glibc would take growing tensors, such as the keys and values of a batch, from its heap, which then never
    # shrinks: 3.8 GB in place of 1.2 GB for 32 answers of 400 tokens
    yield "MALLOC_MMAP_THRESHOLD_", str(4 << 20)
    if config.actor_rollout_ref.rollout.name == "vllm":
        yield "VLLM_CPU_KVCACHE_SPACE", "1"  # GiB
        yield "VLLM_CPU_OMP_THREADS_BIND", "nobind"  # the training worker shares the cores


def _hydra(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_hydra(entry) for entry in value)}]"
    return f"'{value}'" if isinstance(value, Path) else str(value)
