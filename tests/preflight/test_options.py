"""A key that a run of ours cannot honour is refused before Ray starts, each with its reason."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from samr1_verl.preflight import checks, options
from samr1_verl.preflight.callback import examine_config
from samr1_verl.training.agent_loop import AgentLoopManager
from samr1_verl.training.replay_buffer import ReplayBuffer
from tests.composing import compose_recipe

HERE = "tests.preflight.test_options"
OTHER_VALUES = {
    "trainer.use_v1": False,
    "model_engine": "megatron",
    "actor_rollout_ref.actor.strategy": "megatron",
    "actor_rollout_ref.hybrid_engine": False,
    "actor_rollout_ref.actor.freeze_vision_tower": True,
    "actor_rollout_ref.actor.clip_ratio": 0.1,
    "actor_rollout_ref.actor.grad_clip": 0.5,
    "actor_rollout_ref.actor.use_prefix_grouper": True,
    "actor_rollout_ref.model.tiled_mlp.enabled": True,
    "actor_rollout_ref.rollout.multi_turn.enable": True,
    "actor_rollout_ref.rollout.over_sample_rate": 0.5,
    "actor_rollout_ref.rollout.nnodes": 1,
    "actor_rollout_ref.rollout.trace.backend": "weave",
    "actor_rollout_ref.rollout.agent.custom_async_server.path": "mine.py",
    "algorithm.use_pf_ppo": True,
    "trainer.esi_redundant_time": 60,
    "actor_rollout_ref.rollout.agent.default_agent_loop": "tool_agent",
    "actor_rollout_ref.rollout.agent.agent_loop_config_path": "loops.yaml",
    "reward.reward_manager.source": "importlib",
    "reward.reward_manager.name": "rate_limited",
    "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean",
    "actor_rollout_ref.actor.loss_scale_factor": 1300,
    "algorithm.norm_adv_by_std_in_grpo": False,
    "distillation.enabled": True,
}


class OwnBuffer(ReplayBuffer):
    """A user's buffer."""


class OwnManager(AgentLoopManager):
    """A user's manager."""


@pytest.fixture
def config():
    return compose_recipe("samr1_tiny")


def change(config, **dotted):
    for key, value in dotted.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return config


def unread(config, **dotted) -> list[str]:
    change(config, **dotted)
    found = [options.check_options(config), options.check_trainer(config), options.check_reward_model(config)]
    return [problem for check in found for problem in check]


def only(config, **dotted) -> str:
    (problem,) = unread(config, **dotted)
    return problem


def test_every_key_of_the_tables_is_tried_here():
    tables = (options.ALWAYS, options.WITH_OUR_TRAINER, options.WITH_OUR_OBJECTIVE)
    assert OTHER_VALUES.keys() == {key for table in tables for key in table}


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_a_key_that_is_not_read_keeps_its_value(config, key):
    assert (
        OmegaConf.select(config, key)
        in next(
            table[key]
            for table in (options.ALWAYS, options.WITH_OUR_TRAINER, options.WITH_OUR_OBJECTIVE)
            if key in table
        ).values
    ), "verl has no such key any more, or another default"
    OmegaConf.update(config, key, OTHER_VALUES[key])
    (problem,) = unread(config)
    assert problem.startswith(f"{key} is {OTHER_VALUES[key]}, expected ")


@pytest.mark.parametrize("engine", ["megatron", "veomni", "torchtitan"])
def test_other_engines_are_refused_as_they_are_chosen_on_the_command_line(engine):
    config = compose_recipe("samr1_tiny", f"model_engine={engine}")
    assert any(line.startswith(f"model_engine is {engine}, expected dp") for line in unread(config))


def test_keys_of_earlier_versions_name_their_successors(config):
    message = only(config, custom_reward_function__path="mine.py")
    assert "custom_reward_function.path is mine.py" in message and "Set reward.custom_reward_function" in message
    config.custom_reward_function.path = None
    assert "reward_model.enable is True" in only(config, reward_model__enable=True)


def test_only_verls_main_program_is_accepted(config):
    import verl.experimental

    folder = Path(verl.experimental.__path__[0]) / "fully_async_policy" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        asynchronous = compose("fully_async_ppo_trainer", ["+recipe=samr1_tiny"])
    (problem,) = (line for _, _, lines in examine_config(asynchronous) for line in lines)
    assert "fully_async_policy" in problem and "python -m verl.trainer.main_ppo" in problem
    change(config, rollout={"nnodes": 1, "n_gpus_per_node": 8})  # the section that one_step_off_policy adds
    assert "one_step_off_policy" in next(options.check_entry_point(config))
    assert list(options.check_entry_point(compose_recipe("samr1"))) == []


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
def test_asynchronous_trainers_are_refused(config, mode):
    assert f"trainer_mode is {mode}" in only(config, trainer__v1__trainer_mode=mode)


def test_the_trainer_needs_its_replay_buffer_or_one_that_derives_from_it(config):
    sampler = config.trainer.v1.sampler.custom_sampler
    sampler.path, sampler.name = f"pkg://{HERE}", "OwnBuffer"
    assert unread(config) == []
    sampler.name = "OwnManager"
    assert f"custom_sampler is {HERE}.OwnManager, expected {options.BUFFER}" in only(config)
    sampler.path = "pkg://no_such_package"
    assert "'no_such_package'" in only(config)
    sampler.path = sampler.name = None
    assert "custom_sampler is None" in only(config)


def test_the_trainer_needs_agent_loops_that_tell_why_a_rollout_was_lost(config):
    agent = config.actor_rollout_ref.rollout.agent
    agent.agent_loop_manager_class = f"{HERE}.OwnManager"
    assert unread(config) == []
    for other in (None, f"{HERE}.OwnBuffer"):
        agent.agent_loop_manager_class = other
        assert f"agent_loop_manager_class is {other}, expected {options.MANAGER}" in only(config)


def test_verls_trainer_without_our_buffer_may_use_other_agent_loops(config):
    sampler = config.trainer.v1.sampler.custom_sampler
    config.trainer.v1.trainer_mode, sampler.path, sampler.name = "sync", None, None
    config.actor_rollout_ref.actor.use_kl_loss = False
    config.actor_rollout_ref.rollout.agent.default_agent_loop = "tool_agent"
    assert unread(config) == []


def test_verls_trainer_weights_kl_otherwise_than_the_objective(config):
    message = only(config, trainer__v1__trainer_mode="sync")
    assert "trainer.v1.trainer_mode is sync" in message and "actor.use_kl_loss" in message
    config.algorithm.adv_estimator = "grpo"
    assert unread(config) == []


def test_filters_are_refused_where_verls_trainer_ignores_them(config):
    config.algorithm.filter_groups.enable = True
    assert unread(config) == []
    config.trainer.v1.trainer_mode, config.algorithm.adv_estimator = "sync", "grpo"
    message = only(config)
    assert "algorithm.filter_groups.enable is true" in message and "trainer.v1.trainer_mode=sync" in message
    config.algorithm.filter_groups.enable = False
    assert "sync_refill_failed_groups is true" in only(config, trainer__v1__sampler__sync_refill_failed_groups=True)
    config.trainer.v1.sampler.sync_refill_failed_groups = False
    sampler = config.trainer.v1.sampler.custom_sampler
    sampler.path = sampler.name = None
    assert "max_num_gen_batches is 4" in only(config, algorithm__filter_groups__enable=True)
    assert unread(config, algorithm__filter_groups__max_num_gen_batches=0) == []


def test_a_reward_model_needs_gpus_of_its_own_and_a_reward_that_asks_it(config):
    config.reward.reward_model.enable = True
    messages = unread(config)
    assert len(messages) == 2 and "enable_resource_pool=true" in messages[0] and "pkg://reward_fns.samr1" in messages[1]
    config.reward.custom_reward_function.path = "my_reward.py"
    assert "enable_resource_pool=true" in only(config)
    assert unread(config, reward__reward_model__enable_resource_pool=True) == []


def test_a_window_of_recent_metrics_needs_a_single_reward_worker(config):
    change(config, reward__num_workers=2)
    assert list(options.check_window(config)) == []
    change(config, samr1__reward__window={"path": None, "step": 128})
    (problem,) = options.check_window(config)
    for part in ("reward.num_workers is 2", "samr1.reward.window", "Set reward.num_workers=1"):
        assert part in problem


def test_a_critic_that_nothing_reads_is_refused(config):
    message = only(config, critic__enable=True)
    assert "critic.enable is true" in message and "estimator samr1" in message and "Set critic.enable=null" in message
    message = only(config, critic__enable=None, trainer__critic_warmup=10)
    assert "trainer.critic_warmup is 10" in message and "Set trainer.critic_warmup=0" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sglang", r"pip install 'verl[sglang]'"),
        ("trtllm", "pip install tensorrt-llm"),
        ("transformers", "trainer.device is cuda"),
        ("hf", "expected vllm, sglang, trtllm,"),
    ],
)
def test_a_rollout_that_is_not_there_is_refused(config, name, message):
    config.trainer.device = "cuda"
    config.actor_rollout_ref.rollout.name = name
    (problem,) = checks.check_packages(config)
    assert f"actor_rollout_ref.rollout.name is {name}" in problem and message in problem


def test_an_adapter_on_the_cpu_is_refused_unless_it_is_merged():
    adapter = ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora_alpha=16")
    (problem,) = checks.check_packages(compose_recipe("samr1_tiny", *adapter))
    assert "lora_rank is 8" in problem and "Set actor_rollout_ref.model.lora.merge=true" in problem
    merged = compose_recipe("samr1_tiny", *adapter, "actor_rollout_ref.model.lora.merge=true")
    assert list(checks.check_packages(merged)) == []


def test_a_segmenter_beside_vllm_is_refused_unless_it_is_on_the_cpu(config):
    assert list(checks.check_place(config)) == []
    config = compose_recipe("samr1", "samr1.segmenter.service.mode=embedded")
    for device in ("auto", "cuda", "cuda:1"):
        config.samr1.segmenter.device = device
        (problem,) = checks.check_place(config)
        assert f"samr1.segmenter.device {device} " in problem and "service.mode is embedded" in problem
    config.samr1.segmenter.device = "cpu"
    assert list(checks.check_place(config)) == []


@pytest.mark.parametrize("name", ["samr1", "seg_zero", "vision_reasoner", "star"])
def test_our_recipes_pass(name):
    config = compose_recipe(name)
    assert unread(config) == [] and list(checks.check_place(config)) == []
