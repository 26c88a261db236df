"""The configuration of a policy outside a training: the question it was trained on, and the segmenter of its answers.

It comes from a recipe, or from the configuration that a training run leaves in its folder (`.hydra/config.yaml`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from samr1_verl.answers import Caps
from samr1_verl.config import (
    ROOT,
    ConfigError,
    PrepareConfig,
    PromptConfig,
    SegmenterConfig,
    prompt_config,
    reward_config,
    segmenter_config,
)
from samr1_verl.segmenters import segmenter_problems
from samr1_verl.service.client import service_problems

RUN_CONFIG = Path(".hydra/config.yaml")


def compose_recipe(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that `python -m verl.trainer.main_ppo +recipe=… overrides` trains with, open to new keys.

    Raises:
        ConfigError: there is no such recipe, or an override does not fit. Hydra itself would take an unknown recipe
            for a plain value.
    """
    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            known = GlobalHydra.instance().config_loader().get_group_options("recipe")
            if recipe not in known:
                raise ConfigError(f"recipe {recipe!r}: no such recipe, expected one of {', '.join(sorted(known))}")
            config = compose("ppo_trainer", [f"+recipe={recipe}", *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"recipe {recipe} with {' '.join(overrides) or 'no overrides'}: {error}") from error
    OmegaConf.set_struct(config, False)
    return config


def run_config(run: Path, overrides: Sequence[str] = ()) -> DictConfig | None:
    """What a training run was configured with, overrides laid over it; None for a folder without such a file."""
    file = run / RUN_CONFIG
    if not file.is_file():
        return None
    try:
        config = OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
        raise ConfigError(f"{file}: not a readable configuration ({error}). Name a recipe with --recipe") from error
    assert isinstance(config, DictConfig)
    return config


@dataclass(frozen=True)
class InferenceConfig:
    """Everything that is needed to ask a policy and to read its answer.

    `caps` bound a usable answer as the recipe's reward does; `model` is the policy that the
    recipe starts from, `dtype` the rollout's; `processor_kwargs` and `template_kwargs` are verl's
    `data.mm_processor_kwargs` and `data.apply_chat_template_kwargs`; `prepare` has the commands that make a missing input.
    """

    prompt: PromptConfig
    segmenter: SegmenterConfig
    caps: Caps
    max_new_tokens: int
    model: str
    dtype: str
    processor_kwargs: dict[str, Any]
    template_kwargs: dict[str, Any]
    prepare: PrepareConfig

    @classmethod
    def of(cls, config: DictConfig) -> InferenceConfig:
        """From a composed recipe or a run's configuration.

        The service's mode `ray` is an application of a training's cluster; elsewhere its segmenter is embedded.

        Raises:
            ConfigError: a key is missing or wrong, one line each.
        """
        try:
            return cls._read(config)
        except (OmegaConfBaseException, ValidationError) as error:
            what = str(error).splitlines()[0]
            raise ConfigError(f"{what}. Name one of our recipes, or the run of one") from error

    @classmethod
    def _read(cls, config: DictConfig) -> InferenceConfig:
        root = config[ROOT]
        segmenter = segmenter_config(root.segmenter)
        if segmenter.service.mode == "ray":
            service = segmenter.service.model_copy(update={"mode": "embedded"})
            segmenter = segmenter.model_copy(update={"service": service})
        return cls(
            prompt=prompt_config(config.data),
            segmenter=segmenter,
            caps=reward_config(root.get("reward")).usable(),
            max_new_tokens=int(config.data.max_response_length),
            model=str(config.actor_rollout_ref.model.path),
            dtype=str(config.actor_rollout_ref.rollout.dtype),
            processor_kwargs=dict(config.data.get("mm_processor_kwargs") or {}),
            template_kwargs=dict(config.data.get("apply_chat_template_kwargs") or {}),
            prepare=PrepareConfig.model_validate(dict(root.prepare)),
        )

    def problems(self) -> Iterator[str]:
        """Why the segmenter cannot be asked from here, one message each, with what to type."""
        yield from service_problems(self.segmenter.service)
        if self.segmenter.service.mode != "http":
            yield from (f"{problem}. {self.prepare.segmenter}" for problem in segmenter_problems(self.segmenter))
