"""The checks of a dialogue's settings: each part that is missing is named, and the recipes' own values pass."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from samr1_verl.config import ConfigError, samr1_config
from samr1_verl.policies.inference_config import compose_recipe
from samr1_verl.preflight.refine import IMAGES, check_refine
from tests.errors import refused

RECIPES = ("samr1_refine", "samr1_refine_qwen3vl_8b", "samr1_refine_tiny")


def problems(recipe: str, *overrides: str) -> list[str]:
    config = compose_recipe(recipe, overrides)
    return list(check_refine(config, samr1_config(config)))


@pytest.mark.parametrize("recipe", [*RECIPES, "samr1", "samr1_tiny", "star"])
def test_our_recipes_pass(recipe: str) -> None:
    assert problems(recipe) == []


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent"], ["is single_turn_agent,"]),
        (["reward.custom_reward_function.path=pkg://reward_fns.samr1"], ["path is pkg://reward_fns.samr1,"]),
        (["samr1.segmenter.service.mode=embedded"], ["samr1.segmenter.service.mode is embedded"]),
        (["samr1.refine.look=nowhere"], ["samr1.refine.look: found 'nowhere'"]),
        ([f"{IMAGES}=2"], ["limit_mm_per_prompt.image is 2"]),
        (["samr1.refine.max_turns=4"], ["4 turns of 512", "3 images of 900", "4748"]),
        (["data.max_response_length=3336"], ["data.max_response_length is 3336"]),
    ],
)
def test_a_part_that_does_not_fit_is_named(overrides: list[str], names: list[str]) -> None:
    (problem,) = problems("samr1_refine", *overrides)
    assert all(name in problem for name in names) and ("Set " in problem or "Correct" in problem), problem


def test_a_loop_without_the_section() -> None:
    (problem,) = problems("samr1", "actor_rollout_ref.rollout.agent.default_agent_loop=samr1_refine")
    assert "samr1.refine null" in problem


@pytest.mark.parametrize("change", ["max_turns=1", "turn_tokens=0", "max_turns='3'", "turns=3"])
def test_values_of_the_section(change: str) -> None:
    config = compose_recipe("samr1_refine")
    OmegaConf.update(config, *f"samr1.refine.{change}".split("="), force_add=True)
    with refused(ConfigError, "invalid_value", f"samr1.refine.{change.split('=')[0]}: "):
        samr1_config(config)
