"""The files of a policy: a model folder or hub id, a LoRA adapter, or a checkpoint that verl wrote."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from samr1_verl.config import hub_id_or_folder
from samr1_verl.policies.base import PolicyError

STEP_FOLDER = "global_step_"
_WEIGHTS = ("*.safetensors", "*.bin")
_ADAPTER = "adapter_config.json"
_TRAINED_LORA = "lora_train_meta.json"  # with this file, verl's weights in huggingface/ have names that no model has
_LAST = "latest_checkpointed_iteration.txt"


@dataclass(frozen=True)
class Files:
    """The files of a policy: `model` is a folder in the hub's format or a hub id, `adapter` a LoRA adapter's folder."""

    model: Path | str
    adapter: Path | None = None

    def stamp(self) -> str:
        """A hash of the files' names, sizes and times, or of the hub id; it changes when a file is replaced."""
        parts = [str(self.model)] if isinstance(self.model, str) else []
        for folder in (self.model, self.adapter):
            if isinstance(folder, Path):
                files = [(path, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
                parts += [f"{path.name} {stat.st_size} {stat.st_mtime_ns}" for path, stat in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def run_of(policy: str | None) -> Path | None:
    """The folder of the training run that a run folder or a checkpoint belongs to; None: `policy` is neither."""
    if policy is None:
        return None
    path = Path(policy).expanduser().absolute()
    if (path / _LAST).is_file():
        return path
    steps = [folder for folder in (path, *path.parents) if folder.name.startswith(STEP_FOLDER)]
    return steps[0].parent if steps else None


def find(policy: str, base: str, merge: bool = False) -> Files:
    """The files of a policy.

    Args:
        policy: a model folder, a hub id, a LoRA adapter's folder, a run folder (means its last checkpoint), a
            `global_step_N` folder or its `actor` folder.
        base: the base model of an adapter whose configuration names none.
        merge: where a checkpoint has FSDP shards only, merge them with verl's merger into `actor/merged`. A later call
            uses the merged weights, which are bfloat16.

    Raises:
        PolicyError: the folder does not exist, or it has no weights.
    """
    place = hub_id_or_folder(policy)
    if isinstance(place, str):
        return Files(place)
    place = place.absolute()
    if not place.is_dir():
        raise PolicyError(
            "no_such_folder",
            f"policy {policy}",
            "no such folder. Name a model folder, a hub id, or a run or its checkpoint",
        )
    if (place / _LAST).is_file():
        place = _last_step(place)
    if place.name.startswith(STEP_FOLDER):
        place = place / "actor"
    if (place / _ADAPTER).is_file():
        return _with_base(place, base)
    if (place / "huggingface").is_dir():
        return _actor(place, base, merge)
    return Files(_model(place))


def _last_step(run: Path) -> Path:
    step = (run / _LAST).read_text().strip()
    folder = run / f"{STEP_FOLDER}{step}"
    if not folder.is_dir():
        kept = sorted(step_folder.name for step_folder in run.glob(f"{STEP_FOLDER}*"))
        raise PolicyError(
            "no_such_step",
            f"{run / _LAST}",
            f"says {step}, but there is no {folder.name}; found {', '.join(kept) or 'none'}",
        )
    return folder


def _actor(actor: Path, base: str, merge: bool) -> Files:
    """The files of verl's `actor` folder: weights in `huggingface`, in `merged`, or merged now from shards."""
    hub, merged = actor / "huggingface", actor / "merged"
    if _holds_weights(hub) and not (actor / _TRAINED_LORA).is_file():
        return Files(hub)
    if not merged.is_dir():
        shards = sorted(actor.glob("model_world_size_*_rank_*.pt"))
        if not shards:
            raise PolicyError(
                "no_weights", f"{actor}", f"holds neither weights in {hub.name}/ nor shards model_world_size_*.pt"
            )
        if not merge:
            raise PolicyError(
                "not_merged",
                f"{actor}",
                f"holds {len(shards)} FSDP shards and no merged weights. Add --merge: verl's merger then writes "
                f"{merged}, and later commands use it",
            )
        _merge(actor, merged)
    adapter = merged / "lora_adapter"
    return Files(_model(merged), adapter if adapter.is_dir() else None)


def _merge(actor: Path, merged: Path) -> None:
    """Merge the shards with verl's merger. The folder `merged` appears under its name when it is complete."""
    from verl.model_merger.base_model_merger import ModelMergerConfig
    from verl.model_merger.fsdp_model_merger import FSDPModelMerger

    partial = actor / f".merged.{os.getpid()}.partial"
    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=str(actor),
        hf_model_config_path=str(actor / "huggingface"),
        target_dir=str(partial),
    )
    try:
        partial.mkdir()
        with contextlib.redirect_stdout(sys.stderr):  # verl's merger prints its progress
            FSDPModelMerger(config).merge_and_save()
        partial.rename(merged)
    except Exception as error:
        raise PolicyError(
            "merge_failed", f"{actor}", f"verl's merger failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _with_base(adapter: Path, base: str) -> Files:
    file = adapter / _ADAPTER
    try:
        named = json.loads(file.read_text()).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise PolicyError("no_json_object", f"{file}", f"not a JSON object ({error})") from error
    if not _holds_weights(adapter):
        raise PolicyError("no_adapter_weights", f"{adapter}", f"holds {_ADAPTER} but no adapter_model.safetensors")
    place = hub_id_or_folder(named or base)
    if isinstance(place, Path) and not place.is_dir():
        source = f"{_ADAPTER} names" if named else "it names none, and actor_rollout_ref.model.path is"
        raise PolicyError(
            "no_base_model",
            f"{adapter}",
            f"its base model does not exist: {source} {place}. Correct base_model_name_or_path in {file}",
        )
    return Files(place if isinstance(place, str) else _model(place), adapter)


def _model(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise PolicyError(
            "no_model_folder",
            f"{folder}",
            "holds no config.json, so it is no model; expected a model folder, a LoRA adapter, a run folder of verl or "
            "a checkpoint",
        )
    if not _holds_weights(folder):
        raise PolicyError("no_weights", f"{folder}", "holds config.json but no weights (*.safetensors)")
    return folder


def _holds_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)
