"""Composing recipes as verl's main program does, for tests."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

import recipes

FOLDER = Path(recipes.__file__).parent / "recipe"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def compose_recipe(name: str, *overrides: str, with_hydra: bool = False) -> DictConfig:
    """What `python -m verl.trainer.main_ppo +recipe=<name> <overrides>` works with; the caller may change it."""
    return deepcopy(_composed(name, overrides, with_hydra))


@cache
def _composed(name: str, overrides: tuple[str, ...], with_hydra: bool) -> DictConfig:
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [f"+recipe={name}", *overrides], return_hydra_config=with_hydra)


def differences(first: DictConfig, second: DictConfig) -> set[str]:
    """Dotted keys of the leaves that differ; references are compared as they are written, so a value counts once."""
    flat = [_flat(OmegaConf.to_container(config, resolve=False)) for config in (first, second)]
    return {key for key in flat[0].keys() | flat[1].keys() if flat[0].get(key, ...) != flat[1].get(key, ...)}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for name, part in value.items():
        leaves |= _flat(part, f"{prefix}.{name}" if prefix else str(name))
    return leaves
