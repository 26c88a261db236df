"""One training of a recipe for a few steps, and what it leaves: metrics by step, digests of samples and weights."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from samr1_verl import Samr1Error
from samr1_verl.rehearsal import process
from samr1_verl.training.checkpoints import TRACKER

TIMEOUT_S = 6 * 3600.0
# Shards are read without the process groups of the training, and only their own part is looked at.
logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)
# Metrics of times and of the machine's memory: they differ in every run.
UNREPEATABLE = (
    "timing_s/", "timing_per_token_ms/", "perf/", "actor/perf/", "critic/perf/", "reward/seconds/",
    "reward/exposed_seconds", "reward/step_share",
)  # fmt: skip
Metrics = dict[int, dict[str, float]]  # by step; step 0 has a validation only


class RegressError(Samr1Error, RuntimeError):
    """A training that did not end, or a golden file that cannot be used."""


class Run(BaseModel):
    """What a run leaves, without times."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a metric may be NaN

    metrics: Metrics
    samples: dict[int, str]  # by step: SHA-256 of prompts, answers and rewards of the step's rollouts
    weights: str  # SHA-256 of the final weights, see `digest_of_tensors`


def train(recipe: str, overrides: Sequence[str], steps: int, out: Path) -> Run:
    """Train a recipe on a Ray cluster of its own, and read what it left.

    Args:
        recipe: name in the Hydra group `recipe`.
        overrides: key=value of the recipe, as on verl's command line.
        steps: training steps; the run is validated before the first and after the last one, and then saved.
        out: folder of the run; removed first.

    Raises:
        RegressError: the training ended with an error, with the end of its log; or it logged no step.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    out = out.absolute()
    metrics, log = out / "metrics.jsonl", out / "train.log"
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:  # a short path
        started = command(recipe, overrides, steps, out, metrics, Path(ray_folder))
        status = process.run(started, log, process.without_a_cluster(), lambda: "", process.Memory(), TIMEOUT_S)
    if status:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:])
        raise RegressError(
            "training_failed",
            "the training",
            f"ended with exit status {status}. Its whole output is {log}, and the end of it:\n{end}",
        )
    return read(metrics, out / "rollouts", out / "run")


def command(recipe: str, overrides: Sequence[str], steps: int, out: Path, metrics: Path, ray_folder: Path) -> list[str]:
    """verl's own command for a run of `steps` steps.

    Args:
        recipe, overrides: as in `train`.
        steps: the run is saved and validated after the last one.
        out: takes checkpoints in out / "run" and verl's dumps of rollouts in out / "rollouts".
        metrics: JSON lines file of the metrics; verl empties it at the start.
        ray_folder: for Ray's sockets; a short path.
    """
    ray_init = "ray_kwargs.ray_init"
    return [
        *(sys.executable, "-m", "verl.trainer.main_ppo", f"+recipe={recipe}", *overrides),
        f"trainer.total_training_steps={steps}",
        f"trainer.save_freq={steps}",
        f"trainer.test_freq={steps}",
        "trainer.logger=[console,file]",
        f"trainer.default_local_dir='{out / 'run'}'",
        f"trainer.rollout_data_dir='{out / 'rollouts'}'",
        "++actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
        f"++{ray_init}.runtime_env.env_vars.VERL_FILE_LOGGER_PATH='{metrics}'",
        f"++{ray_init}._temp_dir={ray_folder}",
        f"++{ray_init}.address=local",
    ]


def read(metrics: Path, rollouts: Path, run: Path) -> Run:
    """Read what a finished training left.

    Raises:
        RegressError: the log has no training step, or there is no checkpoint.
    """
    by_step: Metrics = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        kept = {name: value for name, value in entry["data"].items() if not name.startswith(UNREPEATABLE)}
        by_step.setdefault(int(entry["step"]), {}).update(kept)
    if not any("actor/grad_norm" in values for values in by_step.values()):
        raise RegressError("no_training_step", f"{metrics}", f"has no training step, found the steps {sorted(by_step)}")
    samples = {int(file.stem): _digest_of_rows(file) for file in rollouts.glob("*.jsonl")}
    weights = digest_of_weights(latest_checkpoint(run))
    return Run(metrics=by_step, samples=dict(sorted(samples.items())), weights=weights)


def latest_checkpoint(run: Path) -> Path:
    """Folder of the checkpoint that verl named last. Raises RegressError: there is none."""
    try:
        return run / f"global_step_{int((run / TRACKER).read_text())}"
    except (OSError, ValueError) as error:
        raise RegressError(
            "no_checkpoint", f"{run}", f"has no checkpoint ({error}), expected its step in {TRACKER}"
        ) from error


def _digest_of_rows(file: Path) -> str:
    """Of verl's dump of a step: prompts, answers and scores, in an order of their own, without verl's random ids."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    texts = sorted(json.dumps([row["input"], row["output"], row["gts"], row["score"]]) for row in rows)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def digest_of_weights(checkpoint: Path) -> str:
    """SHA-256 of the policy in a verl checkpoint: names and bytes of its tensors. Shards of workers are read in order.

    Raises:
        RegressError: the checkpoint holds no weights.
    """
    return _digest_of_files(checkpoint, ("model",))


def digest_of_state(checkpoint: Path) -> str:
    """SHA-256 of everything that a run resumes from: policy, optimizer, learning rate and random states, data."""
    return _digest_of_files(checkpoint, ("model", "optim", "extra_state"), "data.pt")


def _digest_of_files(checkpoint: Path, parts: Sequence[str], *more: str) -> str:
    files = [file for part in parts for file in sorted((checkpoint / "actor").glob(f"{part}_world_size_*.pt"))]
    if not files:
        raise RegressError("no_weights", f"{checkpoint}", "no weights in actor/, expected model_world_size_*.pt")
    digest = hashlib.sha256()
    for file in [*files, *(checkpoint / name for name in more)]:
        digest.update(file.name.encode())
        _add(digest, torch.load(file, map_location="cpu", weights_only=False))  # the run's own file
    return digest.hexdigest()


def _add(digest: hashlib._Hash, value: object) -> None:
    """Add a nested value. A file's own bytes would not do: pickles of equal tensors may differ."""
    if isinstance(value, torch.Tensor):
        local = value.to_local() if hasattr(value, "to_local") else value
        digest.update(f"{local.dtype}{tuple(local.shape)}".encode())
        digest.update(local.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(value.tobytes())
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            digest.update(str(name).encode())
            _add(digest, value[name])
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for part in value:
            _add(digest, part)
    else:
        digest.update(repr(value).encode())
