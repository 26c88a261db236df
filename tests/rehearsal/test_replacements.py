"""A rehearsal replaces what it must, keeps the recipe's rules, and its configuration passes the checks of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from samr1_verl.config import ConfigError
from samr1_verl.preflight import checks
from samr1_verl.rehearsal.replacements import Replacements, environment, shared, without_gpu
from tests.composing import compose_recipe
from tests.errors import refused

GPU_RECIPES = ("samr1", "seg_zero", "vision_reasoner", "star")
VLLM = "actor_rollout_ref.rollout.name=vllm"


def replaced(recipe: str, *asked: str, cpu: bool = True) -> tuple[DictConfig, Replacements]:
    config = compose_recipe(recipe, *asked)
    OmegaConf.set_struct(config, False)
    put = Replacements(config)
    if cpu:
        without_gpu(put, asked)
    shared(put, Path("/tmp/run"))
    return config, put


@pytest.mark.parametrize("recipe", GPU_RECIPES)
@pytest.mark.parametrize("cpu", [True, False])
def test_the_rules_of_a_run_hold(recipe: str, cpu: bool) -> None:
    config, _ = replaced(recipe, cpu=cpu)
    for check in (checks.check_types, checks.check_objective, checks.check_lengths, checks.check_micro_batches):
        assert list(check(config)) == []


@pytest.mark.parametrize("recipe", GPU_RECIPES)
def test_updates_per_step_rollouts_per_prompt_and_micro_batches_are_the_recipes(recipe: str) -> None:
    original = compose_recipe(recipe)
    config, _ = replaced(recipe)
    actors = [each.actor_rollout_ref.actor for each in (original, config)]
    updates = [
        each.data.train_batch_size / actor.ppo_mini_batch_size
        for each, actor in zip((original, config), actors, strict=True)
    ]
    assert updates[0] == updates[1]
    assert actors[0].ppo_micro_batch_size_per_gpu == actors[1].ppo_micro_batch_size_per_gpu
    assert original.actor_rollout_ref.rollout.n == config.actor_rollout_ref.rollout.n
    assert config.data.train_batch_size * config.actor_rollout_ref.rollout.n == 32


def test_on_gpus_only_lengths_places_and_what_makes_effects_visible_change() -> None:
    _, put = replaced("samr1", cpu=False)
    touched = {made.key.split(".")[0] for made in put.made}
    assert touched == {"data", "trainer", "actor_rollout_ref"}
    kept = ("gpus_per_node", "nnodes", "device", "rollout.name", "dtype", "remove_padding", "gpus", "parallel_size")
    assert not [made.key for made in put.made if made.key.endswith(kept)]


def test_overrides_compose_to_the_replaced_configuration() -> None:
    config, put = replaced("star", cpu=True)
    composed = compose_recipe("star", *(made.override for made in put.made))
    for made in put.made:
        assert OmegaConf.select(composed, made.key) == OmegaConf.select(config, made.key), made


def test_every_replacement_has_a_reason_and_changes_a_value() -> None:
    config, put = replaced("samr1_tiny")
    original = compose_recipe("samr1_tiny")
    for made in put.made:
        assert made.reason
        assert OmegaConf.select(original, made.key) != OmegaConf.select(config, made.key), made


def test_a_rehearsal_without_a_gpu_asks_for_no_gpu_and_merges_lora() -> None:
    config, _ = replaced("star", "samr1.segmenter.service.mode=ray")
    assert config.trainer.device == "cpu" and config.samr1.segmenter.device == "cpu"
    assert config.samr1.segmenter.service.ray.gpus == 0
    assert config.actor_rollout_ref.rollout.name == "transformers"
    assert config.actor_rollout_ref.model.lora.merge and config.actor_rollout_ref.model.lora_rank == 64
    assert list(checks.check_packages(config)) == []


def test_vllm_without_a_gpu_is_kept_where_it_was_asked_for() -> None:
    config, _ = replaced("samr1", VLLM)
    rollout = config.actor_rollout_ref.rollout
    assert rollout.name == "vllm" and rollout.enforce_eager and not rollout.free_cache_engine
    assert "VLLM_CPU_KVCACHE_SPACE" in dict(environment(config))
    assert "VLLM_CPU_KVCACHE_SPACE" not in dict(environment(replaced("samr1")[0]))


@pytest.mark.parametrize(("recipe", "rate"), [("samr1", 1e-4), ("star", 1e-3)])
def test_an_adapter_learns_faster_so_that_its_updates_change_answers(recipe: str, rate: float) -> None:
    config, _ = replaced(recipe)
    assert config.actor_rollout_ref.actor.optim.lr == rate


def test_loggers_on_servers_are_left_out() -> None:
    config, _ = replaced("samr1", "trainer.logger=[console,wandb]", cpu=False)
    assert config.trainer.logger == ["console", "file"]


def test_an_engine_without_a_cpu_counterpart_is_refused() -> None:
    with refused(ConfigError, "strategy_needs_gpu", "actor.strategy: found fsdp,", "fsdp2"):
        replaced("samr1", "actor_rollout_ref.actor.strategy=fsdp")
