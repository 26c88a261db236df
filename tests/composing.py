"""Composing recipes as verl's main program does, for tests."""

from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

import recipes

FOLDER = Path(recipes.__file__).parent / "recipe"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def compose_recipe(name: str, *overrides: str, with_hydra: bool = False) -> DictConfig:
    """What `python -m verl.trainer.main_ppo +recipe=<name> <overrides>` works with."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [f"+recipe={name}", *overrides], return_hydra_config=with_hydra)
