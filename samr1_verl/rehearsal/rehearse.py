"""A rehearsal from the recipe to the verdict.

stand-ins      architecture.py, processor.py, lessons.py, policy.py; segmenter.py; scenes.py
replacements   replacements.py: the keys that change, each with its reason
two starts     process.py: verl's own command twice, watched
verdict        evidence.py: what the starts logged
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from samr1_verl.config import ConfigError, samr1_config
from samr1_verl.cpu import accelerator_present
from samr1_verl.policies.inference_config import compose_recipe
from samr1_verl.preflight.inputs import compares_masks, uses_segmenter
from samr1_verl.prompts.answer_form import like
from samr1_verl.rehearsal import evidence, process, replacements
from samr1_verl.rehearsal.evidence import Check, RehearsalError
from samr1_verl.rehearsal.policy import StandIn, save_policy
from samr1_verl.rehearsal.replacements import STEPS, Replacement, Replacements
from samr1_verl.rehearsal.scenes import write_scenes
from samr1_verl.rehearsal.segmenter import save_segmenter

TIMEOUT_S = 3600.0  # of a start
VALIDATION_ROWS = 4
SEED = 0
MARK = ".samr1_rehearsal"  # file that tells a folder of a rehearsal, which the next one empties
PHASES = (
    ("start and validation", "step 1", f"step {STEPS}, checkpoint, validation"),
    ("resume and validation", f"step {STEPS + 1}"),
)

Say = Callable[[str], None]


@dataclass
class Result:
    """The outcome of a rehearsal; `as_json` is the last line of the command."""

    recipe: str
    device: str
    replaced: list[Replacement]
    stand_in: StandIn
    checks: list[Check] = field(default_factory=list)
    times: list[dict[str, list[float]]] = field(default_factory=list)  # per start
    memory: process.Memory = field(default_factory=process.Memory)
    wall_s: float = 0.0
    not_covered: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all four things were seen."""
        return bool(self.checks) and all(check.seen for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "recipe": self.recipe,
            "ok": self.ok,
            "device": self.device,
            **{check.name.replace(" ", "_"): check.seen for check in self.checks},
            "wall_s": round(self.wall_s, 1),
            "peak_gb": round(max(self.memory.peak_gb.values(), default=0.0), 2),
            "phases": {
                name: {"s": round(self.memory.seconds.get(name, 0.0), 1), "gb": round(peak, 2)}
                for name, peak in self.memory.peak_gb.items()
            },
            "roles_gb": {role: round(peak, 2) for role, peak in self.memory.roles_gb.items()},
            "replaced": {made.key: made.value for made in self.replaced},
            "not_covered": self.not_covered,
        }


def rehearse(recipe: str, overrides: Sequence[str], out: Path, say: Say) -> Result:
    """Rehearse a recipe.

    Args:
        recipe: name in the Hydra group `recipe`.
        overrides: key=value of the recipe, as on verl's command line.
        out: folder of the rehearsal; its earlier content of ours is removed. On several nodes, storage that all share.
        say: shows a line.

    Raises:
        ConfigError: the recipe does not compose, a stand-in cannot be made, or `out` holds something else.
        RehearsalError: a training ended with an error; the message has the end of its log.
    """
    started = time.monotonic()
    config = compose_recipe(recipe, overrides)
    samr1_config(config)
    out = out.absolute()
    _empty(out)
    on_cpu = config.trainer.device == "cpu" or not accelerator_present()
    put = Replacements(config)
    _rows(put, out / "rows")
    device = None if on_cpu else torch.accelerator.current_accelerator()
    if on_cpu:
        replacements.without_gpu(put, overrides)  # first: sizes of stand-ins and step depend on the number of workers
    stand_in = _stand_ins(put, out, "cpu" if device is None else device.type, say)
    replacements.shared(put, out / "run")
    result = Result(recipe, str(config.trainer.device), put.made, stand_in)
    _show_replaced(result, say)
    command = [sys.executable, "-m", "verl.trainer.main_ppo", f"+recipe={recipe}", *overrides]
    command += [made.override for made in put.made]
    with _places(config, on_cpu, say) as (places, env):
        starts = [_start(number, [*command, *places], env, out, result, say) for number in range(len(PHASES))]
    result.checks = evidence.examine(starts[0], starts[1], compares_masks(config))
    result.times = [evidence.times(start.metrics) for start in starts]
    result.not_covered = _not_covered(config, on_cpu, stand_in)
    result.wall_s = time.monotonic() - started
    return result


def _empty(out: Path) -> None:
    """Make the folder of a rehearsal, or empty an earlier one. Raises ConfigError for a folder of something else."""
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "not_a_rehearsal", "--out", f"{out} exists and is no folder of a rehearsal. Name a new folder"
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()


def _rows(put: Replacements, folder: Path) -> None:
    """Draw scenes where one of the recipe's data files does not exist."""
    config = put.config
    objects = 3 if like(config.samr1.prompt) in ("vision_reasoner", "star") else 1
    why = "not here: drawn scenes of photograph size"
    for key, rows in (("train_files", 32), ("val_files", VALIDATION_ROWS)):
        if not all(file.is_file() for file in replacements.files_of(config, key)):
            split = key.removesuffix("_files")
            put.set(f"data.{key}", write_scenes(folder, split, rows, objects, SEED), why)


def _stand_ins(put: Replacements, out: Path, device: str, say: Say) -> StandIn:
    """Make policy and segmenter, in a process of their own."""
    config = put.config
    files = replacements.files_of(config, "train_files")
    with process.helper() as pool:
        policy = pool.submit(_save_policy, OmegaConf.to_yaml(config), files, out / "policy", device).result()
        say(
            f"stand-in for the policy: {policy.parameters / 1e6:.1f} M random weights, taught in {policy.taught.steps} "
            f"supervised steps ({policy.taught.seconds:.0f} s) to write answers of {policy.taught.answer_tokens:.0f} "
            f"tokens; prompts of up to {policy.prompt_tokens} tokens; "
            + ("the model's own tokenizer" if policy.own_tokenizer else "a small tokenizer that splits text as Qwen's")
        )
        put.set("actor_rollout_ref.model.path", out / "policy", "small, randomly initialised, same architecture")
        settings = samr1_config(config).segmenter
        service = settings.service
        if uses_segmenter(config) and settings.backend == "transformers" and service.mode != "http":
            weights = pool.submit(save_segmenter, settings, out / "segmenter", SEED).result()
            say(f"stand-in for the segmenter: {weights / 1e6:.1f} M random weights, same class, input and embedding")
            put.set("samr1.segmenter.path", out / "segmenter", "small, randomly initialised, same class")
        elif uses_segmenter(config):
            say(f"segmenter: {settings.path} itself (backend {settings.backend}, mode {service.mode})")
    return policy


def _save_policy(config: str, files: Sequence[Path], folder: Path, device: str) -> StandIn:
    made = OmegaConf.create(config)
    assert isinstance(made, DictConfig)
    return save_policy(made, files, folder, device, SEED)


@contextmanager
def _places(config: DictConfig, on_cpu: bool, say: Say) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Overrides and environment of a start: on the CPU a cluster of its own, in a folder with a short path."""
    env = dict(os.environ)
    if not on_cpu:
        yield [], env
        return
    env.pop("RAY_ADDRESS", None)
    own = dict(replacements.environment(config))
    say(f"environment: {' '.join(f'{name}={value}' for name, value in own.items())}")
    env |= own
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield [f"++{replacements.RAY}._temp_dir={folder}", f"++{replacements.RAY}.address=local"], env


def _start(
    number: int, command: Sequence[str], env: Mapping[str, str], out: Path, result: Result, say: Say
) -> evidence.Start:
    """Run verl's command once: for the first STEPS steps (number 0), or resumed for one more (1)."""
    metrics, validation, log = out / f"metrics_{number}.jsonl", out / "run" / f"validation_{number}", out / "train.log"
    last = STEPS if number == 0 else STEPS + 1
    own = [f"++trainer.validation_data_dir='{validation}'", f"++trainer.total_training_steps={last}"]
    own += [f"++{replacements.RAY}.runtime_env.env_vars.VERL_FILE_LOGGER_PATH='{metrics}'"]
    if number:
        own += ["++trainer.save_freq=-1", "++trainer.test_freq=-1"]
    names = PHASES[number]

    def phase() -> str:
        logged = len(metrics.read_bytes().splitlines()) if metrics.is_file() else 0
        return names[min(logged, len(names) - 1)]

    say(f"start {number + 1} of {len(PHASES)}: {'steps 1 to ' if number == 0 else 'resume for step '}{last}")
    status = process.run([*command, *own], log, env, phase, result.memory, TIMEOUT_S)
    if status:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:])
        raise RehearsalError(
            "training_failed",
            f"start {number + 1}",
            f"ended with exit status {status}. Its whole output is {log}, and the end of it:\n{end}",
        )
    return evidence.read_start(metrics, validation)


def _show_replaced(result: Result, say: Say) -> None:
    say("replaced; all other keys have the recipe's values:")
    for made in result.replaced:
        say(f"  {made.key}: {made.found} → {made.value}   ({made.reason})")


def _not_covered(config: DictConfig, on_cpu: bool, stand_in: StandIn) -> list[str]:
    """What a passed rehearsal says nothing about."""
    items = [
        "learning: the weights are random, so the rewards' size means nothing",
        "memory of the real weights, of their gradients and of the optimizer's states (samr1 doctor)",
        "time of a step with the real weights",
        "rows after the first few, where the recipe's own rows were used",
    ]
    if not stand_in.own_tokenizer:
        items.append("the policy's own tokenizer and chat template")
    if on_cpu:
        items += ["GPUs: kernels, bf16, flash-attn, fused or compiled code, placement of the segmenter, NCCL"]
        items += ["more than one training worker, tensor parallelism, several nodes"]
        if config.actor_rollout_ref.rollout.name != "vllm":
            items.append("vLLM, its CUDA graphs, sleep and weight transfer")
        if config.actor_rollout_ref.model.get("lora_rank", 0):
            items.append("the LoRA adapter inside the rollout: its weights were merged")
    return items
