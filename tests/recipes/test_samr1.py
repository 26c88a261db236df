"""Every recipe composes into what verl builds its parts from; a wrong key fails here and not on a cluster."""

import copy
import re

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback
from verl.trainer.ppo.reward import get_custom_reward_fn, resolve_reward_manager_cls
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.dataset.rl_dataset import get_dataset_class
from verl.utils.import_utils import load_module
from verl.workers.config import FSDPActorConfig, HFModelConfig, RewardModelConfig, RolloutConfig

from samr1_verl.config import samr1_config
from samr1_verl.preflight.checks import check_lengths, check_objective, check_types
from samr1_verl.preflight.inputs import check_reward
from samr1_verl.training.objective import PolicyLossConfig
from samr1_verl.training.trainer import Trainer
from tests.composing import FOLDER, NAMES, compose_recipe, differences
from tests.recipes.sizes import MAY_DIFFER

# Sections that verl turns into dataclasses, and what they must become.
BUILT = {
    "actor_rollout_ref.actor": FSDPActorConfig,
    "actor_rollout_ref.ref": FSDPActorConfig,
    "actor_rollout_ref.rollout": RolloutConfig,
    "actor_rollout_ref.model": HFModelConfig,
    "reward.reward_model": RewardModelConfig,
    "actor_rollout_ref.rollout.checkpoint_engine": None,
    "actor_rollout_ref.rollout.val_kwargs": None,
    "actor_rollout_ref.actor.optim": None,
    "actor_rollout_ref.actor.fsdp_config": None,
    "actor_rollout_ref.actor.checkpoint": None,
    "actor_rollout_ref.actor.policy_loss": PolicyLossConfig,
    "actor_rollout_ref.ref.fsdp_config": None,
    "reward.sandbox_fusion": None,
    "distillation": None,
}
# What the paper does not say: the key's line must tell the reader.
UNPUBLISHED = [
    *("prompt", "dtype", "caps", "val_files", "val_max_samples", "train_batch_size", "seed"),
    *("max_prompt_length", "max_response_length", "ppo_mini_batch_size", "clip_ratio_low", "kl_loss_coef"),
    *("kl_loss_type", "entropy_coeff", "weight_decay", "clip_grad", "temperature", "total_epochs"),
]


def as_verl_builds_it(config: DictConfig, section: str) -> DictConfig:
    """The section, the reference model's with the names that verl's worker gives it (engine_workers.init_model)."""
    part = copy.deepcopy(OmegaConf.select(config, section))
    if section == "actor_rollout_ref.ref":
        with open_dict(part):
            part.ppo_mini_batch_size = config.actor_rollout_ref.actor.ppo_mini_batch_size
            part.ppo_micro_batch_size = part.pop("log_prob_micro_batch_size")
            part.ppo_micro_batch_size_per_gpu = part.pop("log_prob_micro_batch_size_per_gpu")
            part.use_dynamic_bsz = part.pop("log_prob_use_dynamic_bsz")
            part.ppo_max_token_len_per_gpu = part.pop("log_prob_max_token_len_per_gpu")
    return part


@pytest.mark.parametrize("name", NAMES)
def test_recipe_lands_in_the_root_of_the_configuration(name):
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# @package _global_\n")
    config = compose_recipe(name)
    assert "recipe" not in config
    assert config.algorithm.adv_estimator == ("samr1" if name.startswith("samr1") else "grpo")
    OmegaConf.to_container(config.samr1, resolve=True)
    OmegaConf.to_container(config.trainer, resolve=True)


@pytest.mark.slow
@pytest.mark.parametrize("section", BUILT)
@pytest.mark.parametrize("name", NAMES)
def test_verl_builds_its_dataclasses(name, section, random_policy):
    config = compose_recipe(name)
    config.actor_rollout_ref.model.path = str(random_policy)
    config.reward.reward_model.rollout.name = "vllm"
    built = omega_conf_to_dataclass(as_verl_builds_it(config, section))
    assert BUILT[section] is None or isinstance(built, BUILT[section])


@pytest.mark.slow
@pytest.mark.parametrize("section", ["actor", "ref", "rollout", "actor.policy_loss"])
def test_a_key_that_verl_does_not_know_fails(section):
    config = compose_recipe("samr1", f"+actor_rollout_ref.{section}.no_such_key=1")
    with pytest.raises(Exception, match="no_such_key"):
        omega_conf_to_dataclass(as_verl_builds_it(config, f"actor_rollout_ref.{section}"))


@pytest.mark.parametrize("name", NAMES)
def test_recipe_passes_verls_own_validation_and_trains_without_a_critic(name):
    # verl asks the installed vLLM which ranks of an adapter it takes; without one only the whole policy can be checked.
    config = compose_recipe(name)
    config.actor_rollout_ref.model.lora_rank = 0
    assert need_reference_policy(config) == (not name.startswith("star")) and not need_critic(config)
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=False)
    build_checkpoint_callback(config)


@pytest.mark.parametrize("name", NAMES)
def test_everything_a_recipe_names_can_be_loaded(name):
    config = compose_recipe(name)
    assert get_dataset_class(config.data).__name__ == "SegmentationDataset"
    assert get_trainer_cls(config.trainer.v1.trainer_mode) is Trainer
    assert callable(get_custom_reward_fn(config)) and resolve_reward_manager_cls(config)
    sampler = config.trainer.v1.sampler.custom_sampler
    assert getattr(load_module(sampler.path), sampler.name).__module__ == "samr1_verl.training.replay_buffer"


@pytest.mark.parametrize("name", NAMES)
def test_values_pass_the_checks_that_need_no_files(name):
    config = compose_recipe(name)
    samr1_config(config)
    problems = [*check_types(config), *check_objective(config), *check_lengths(config), *check_reward(config)]
    assert problems == []


def test_samr1_is_the_paper():
    config = compose_recipe("samr1")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert config.actor_rollout_ref.model.path == "Qwen/Qwen2.5-VL-7B-Instruct" and rollout.name == "vllm"
    assert config.trainer.n_gpus_per_node * config.trainer.nnodes == 8
    assert (rollout.n, actor.optim.lr) == (8, 1e-6)
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.3, None)
    assert actor.use_kl_loss and (actor.kl_loss_coef, actor.kl_loss_type) == (5e-3, "low_var_kl")
    assert config.data.train_batch_size / actor.ppo_mini_batch_size == 2 and actor.ppo_epochs == 1
    assert config.samr1.policy_size == [840, 840]
    assert dict(config.samr1.reward.thresholds) == {0.5: 2, 0.7: 3, 0.8: 4}
    assert config.samr1.objective == {"normalizer": "group", "standardize": True, "shuffle_rewards": False}


@pytest.mark.parametrize("key", UNPUBLISHED)
def test_an_unpublished_value_says_so(key):
    lines = [line for line in (FOLDER / "samr1.yaml").read_text().splitlines() if re.match(rf"\s*{key}:", line)]
    settings = [line for line in lines if "${" not in line]
    assert settings and all("unpublished" in line for line in settings)


def test_the_tiny_recipe_changes_size_and_place_only():
    assert differences(compose_recipe("samr1"), compose_recipe("samr1_tiny")) == MAY_DIFFER
