"""The configuration of a policy outside a training: prompt and image size of its training, and the segmenter.

Its source is a recipe, or the configuration that a training run writes to its folder (`.hydra/config.yaml`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    RefineConfig,
    SegmenterConfig,
    answer_tokens,
    prompt_config,
    refine_config,
    reward_config,
    segmenter_config,
)
from samr1_verl.policies.base import Sampling
from samr1_verl.segmenters import segmenter_problems
from samr1_verl.service.client import service_problems

ROLLOUTS = Sampling(1.0)  # as verl's own keys have it
RUN_CONFIG = Path(".hydra/config.yaml")


def compose_recipe(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that `python -m verl.trainer.main_ppo +recipe=… overrides` trains with. It accepts new keys.

    Raises:
        ConfigError: there is no such recipe, or an override does not fit. Hydra itself would accept an unknown recipe
            as a plain value.
    """
    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            known = GlobalHydra.instance().config_loader().get_group_options("recipe")
            if recipe not in known:
                expected = ", ".join(sorted(known))
                raise ConfigError("no_such_recipe", f"recipe {recipe!r}", f"no such recipe, expected one of {expected}")
            config = compose("ppo_trainer", [f"+recipe={recipe}", *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        place = f"recipe {recipe} with {' '.join(overrides) or 'no overrides'}"
        raise ConfigError("does_not_compose", place, f"{error}") from error
    OmegaConf.set_struct(config, False)
    return config


def run_config(run: Path, overrides: Sequence[str] = ()) -> DictConfig | None:
    """The configuration of a training run with overrides; None: the folder has no .hydra/config.yaml.

    Raises:
        ConfigError: the file is unreadable, or an override does not fit.
    """
    file = run / RUN_CONFIG
    if not file.is_file():
        return None
    try:
        config = OmegaConf.load(file)
    except (OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        raise ConfigError(
            "unreadable_config", f"{file}", f"not a readable configuration ({error}). Name a recipe with --recipe"
        ) from error
    if plain := [override for override in overrides if "=" not in override]:
        raise ConfigError("not_key_value", "--set", f"found {plain[0]!r}, expected key=value with a key of {file}")
    OmegaConf.set_struct(config, True)  # a key that is not there is an error
    try:
        config = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise ConfigError("does_not_fit", "--set", f"{problem}. Expected key=value with a key of {file}") from error
    OmegaConf.set_struct(config, False)
    assert isinstance(config, DictConfig)
    return config


@dataclass(frozen=True)
class InferenceConfig:
    """Everything that is needed to ask a policy and to read its answer."""

    prompt: PromptConfig
    segmenter: SegmenterConfig
    caps: Caps  # maximum number of points and objects of a usable answer, as in the recipe's reward
    max_new_tokens: int  # per answer; of a dialogue: per turn
    model: str  # actor_rollout_ref.model.path: the policy that the training starts from
    dtype: str  # dtype of the rollout's weights
    processor_kwargs: dict[str, Any]  # verl's data.mm_processor_kwargs
    template_kwargs: dict[str, Any]  # verl's data.apply_chat_template_kwargs
    prepare: PrepareConfig  # commands that make a missing input
    reward: Mapping[str, Any]  # verl's reward.custom_reward_function, with this segmenter: scoring.recipe_reward
    sampling: Sampling = ROLLOUTS  # of the training's rollouts
    group: int = 1  # actor_rollout_ref.rollout.n: number of rollouts of a prompt whose rewards are compared
    refine: RefineConfig | None = None  # samr1.refine; None: the policy answers once

    @classmethod
    def of(cls, config: DictConfig) -> InferenceConfig:
        """From a composed recipe or a run's configuration.

        The service's mode `ray` needs a training's cluster, so it becomes `embedded` here.

        Raises:
            ConfigError: a key is missing or wrong; one line per key.
        """
        try:
            return cls._read(config)
        except (OmegaConfBaseException, ValidationError) as error:
            problem = str(error).splitlines()[0]
            raise ConfigError(
                "no_recipe", "the configuration", f"{problem}. Name one of our recipes, or a training run of one"
            ) from error

    @classmethod
    def _read(cls, config: DictConfig) -> InferenceConfig:
        root = config[ROOT]
        segmenter = segmenter_config(root.segmenter)
        refine = None if root.get("refine") is None else refine_config(root.refine)
        if segmenter.service.mode == "ray":
            service = segmenter.service.model_copy(update={"mode": "embedded"})
            segmenter = segmenter.model_copy(update={"service": service})
        return cls(
            prompt=prompt_config(config.data),
            segmenter=segmenter,
            caps=reward_config(root.get("reward")).usable(),
            max_new_tokens=answer_tokens(config),
            model=str(config.actor_rollout_ref.model.path),
            dtype=str(config.actor_rollout_ref.rollout.dtype),
            processor_kwargs=dict(config.data.get("mm_processor_kwargs") or {}),
            template_kwargs=dict(config.data.get("apply_chat_template_kwargs") or {}),
            prepare=PrepareConfig.model_validate(dict(root.prepare)),
            reward=_reward(config, segmenter),
            sampling=_sampling(config.actor_rollout_ref.rollout),
            group=int(config.actor_rollout_ref.rollout.get("n", 1)),
            refine=refine,
        )

    def problems(self) -> Iterator[str]:
        """The reasons why this process cannot use the segmenter, one message per reason, with the command to type."""
        yield from service_problems(self.segmenter.service)
        if self.segmenter.service.mode != "http":
            yield from (f"{problem}. {self.prepare.segmenter}" for problem in segmenter_problems(self.segmenter))


def _reward(config: DictConfig, segmenter: SegmenterConfig) -> dict[str, Any]:
    section: Any = OmegaConf.to_container(config.reward.custom_reward_function, resolve=True)
    if arguments := section.get("reward_kwargs"):
        section["reward_kwargs"] = arguments | ({"segmenter": segmenter} if "segmenter" in arguments else {})
    return dict(section)


def _sampling(rollout: DictConfig) -> Sampling:
    """verl's keys: `top_k` -1 means all tokens, as 0 does."""
    return Sampling(float(rollout.temperature), max(0, int(rollout.get("top_k", 0))), float(rollout.get("top_p", 1.0)))
