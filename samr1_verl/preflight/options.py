"""Keys of verl that a run of ours cannot honour: each is refused before Ray starts.

verl 0.9.1 has one configuration for several trainers and engines, and reads a key only in some of them. A key that the
V1 trainer with FSDP does not read changes nothing, without a word. The tests set every key of this file once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.utils import need_critic
from verl.utils.import_utils import load_module

from samr1_verl.config import ACTOR, ROLLOUT

MODEL = "actor_rollout_ref.model"
BUFFER = "samr1_verl.training.replay_buffer.ReplayBuffer"
MANAGER = "samr1_verl.training.agent_loop.AgentLoopManager"
SAMPLER = "trainer.v1.sampler.custom_sampler"


class Fixed(NamedTuple):
    """The only values of a key that have the effect that its name says, and the reason with the next step."""

    values: tuple[Any, ...]
    reason: str


NOT_READ = "verl's trainer does not read it with FSDP"
ALWAYS = {
    "trainer.use_v1": Fixed((True,), "the old trainer counts no lost rollouts, logs no gIoU, and weights KL by tokens"),
    "model_engine": Fixed(("dp",), f"our recipes set {ACTOR}.strategy=fsdp2, which other engines cannot use"),
    f"{ACTOR}.strategy": Fixed(("fsdp2", "fsdp"), "other engines need sections that our recipes do not have"),
    "actor_rollout_ref.hybrid_engine": Fixed((True,), "only verl's separate_async trainer has rollouts elsewhere"),
    f"{ACTOR}.freeze_vision_tower": Fixed(
        (False,), f"{NOT_READ}. Train an adapter: {MODEL}.lora_rank with {MODEL}.exclude_modules='.*visual.*'"
    ),
    f"{ACTOR}.clip_ratio": Fixed((0.2,), f"verl reads {ACTOR}.clip_ratio_low and clip_ratio_high. Set both"),
    f"{ACTOR}.grad_clip": Fixed((1.0,), f"{NOT_READ}. Set {ACTOR}.optim.clip_grad"),
    f"{ACTOR}.use_prefix_grouper": Fixed((False,), NOT_READ),
    f"{MODEL}.tiled_mlp.enabled": Fixed((False,), NOT_READ),
    f"{ROLLOUT}.multi_turn.enable": Fixed((False,), "the trainer does not read it. Start from +recipe=samr1_refine"),
    f"{ROLLOUT}.over_sample_rate": Fixed((0, 0.0), NOT_READ),
    f"{ROLLOUT}.nnodes": Fixed((0,), "rollouts run on the GPUs of the training"),
    f"{ROLLOUT}.trace.backend": Fixed((None,), "verl's trainer writes no traces"),
    f"{ROLLOUT}.agent.custom_async_server.path": Fixed((None,), NOT_READ),
    "algorithm.use_pf_ppo": Fixed((False,), NOT_READ),
    "trainer.esi_redundant_time": Fixed((0,), NOT_READ),
}
# Of the trainer `samr1` and of our replay buffer, which count one row per rollout.
ONE_ROW = "metrics, lost rollouts and samples count one row and one answer per rollout"
WITH_OUR_TRAINER = {
    f"{ROLLOUT}.agent.default_agent_loop": Fixed(("single_turn_agent", "samr1_refine"), ONE_ROW),
    f"{ROLLOUT}.agent.agent_loop_config_path": Fixed((None,), ONE_ROW),
    "reward.reward_manager.source": Fixed(("register",), "other managers change scores, or score a fault as 0"),
    "reward.reward_manager.name": Fixed(("naive",), "other managers change scores, or score a fault as 0"),
}
WITH_OUR_OBJECTIVE = {
    f"{ACTOR}.loss_agg_mode": Fixed(("token-mean",), "the loss samr1 does not read it. Set samr1.objective.normalizer"),
    f"{ACTOR}.loss_scale_factor": Fixed((None,), "the loss samr1 does not read it"),
    "algorithm.norm_adv_by_std_in_grpo": Fixed(
        (True,), "the estimator samr1 does not read it. Set samr1.objective.standardize"
    ),
    "distillation.enabled": Fixed((False,), "the loss samr1 has no term for it"),
}
UNLOADABLE = (ImportError, AttributeError, OSError, RuntimeError)  # what the import of a user's class may raise
# verl's keys of earlier versions, which main_ppo does not read.
LEGACY = {
    "custom_reward_function": "reward.custom_reward_function",
    "reward_model": "reward.reward_model, reward.reward_manager or reward.num_workers",
    "sandbox_fusion": "reward.sandbox_fusion",
}


def check_entry_point(config: DictConfig) -> Iterator[str]:
    """The program is verl's main_ppo: the others have trainers of their own, and are known by their sections."""
    for section, program in (("async_training", "fully_async_policy"), ("rollout", "one_step_off_policy")):
        if OmegaConf.select(config, section) is not None:
            yield (
                f"{section}: the section belongs to verl.experimental.{program}, whose trainer reads neither "
                "trainer.v1 nor lost rollouts, and has no exact KL. Type: python -m verl.trainer.main_ppo +recipe=…"
            )
            return


def check_options(config: DictConfig) -> Iterator[str]:
    """Every key has an effect: those that verl or our trainer and objective do not read keep their values."""
    yield from _fixed(config, ALWAYS)
    for section, successor in LEGACY.items():
        if (value := _first_set(config.get(section), section)) is not None:
            yield f"{value}: main_ppo does not read it. Set {successor}"
    if trains_with_ours(config):
        yield from _fixed(config, WITH_OUR_TRAINER)
    if config.algorithm.adv_estimator == "samr1":
        yield from _fixed(config, WITH_OUR_OBJECTIVE)
    yield from _critic(config)


def check_trainer(config: DictConfig) -> Iterator[str]:
    """Trainer, sampler and agent loops fit each other."""
    mode, sampler = config.trainer.v1.trainer_mode, config.trainer.v1.sampler.custom_sampler
    if mode not in ("samr1", "sync"):
        yield (
            f"trainer.v1.trainer_mode is {mode}: its rollouts come from older policies and span steps, which neither "
            "our replay buffer nor the exact KL knows. Set trainer.v1.trainer_mode=samr1"
        )
    elif mode == "samr1":
        yield from _derived(SAMPLER, _sampler_name(config), BUFFER, "the trainer samr1 calls it")
        manager = config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class")
        yield from _derived(
            f"{ROLLOUT}.agent.agent_loop_manager_class", manager, MANAGER, "others do not tell why a rollout was lost"
        )
    else:
        if config.actor_rollout_ref.actor.use_kl_loss and config.algorithm.adv_estimator == "samr1":
            yield (
                f"trainer.v1.trainer_mode is sync with {ACTOR}.use_kl_loss and the objective samr1: verl weights KL by "
                "the tokens of a mini-batch, not per group. Set trainer.v1.trainer_mode=samr1"
            )
        yield from _filters_of_sync(config, bool(sampler.path and sampler.name))


def trains_with_ours(config: DictConfig) -> bool:
    """Whether the trainer of the run, or its replay buffer, is ours."""
    name = _sampler_name(config)
    try:
        return config.trainer.v1.trainer_mode == "samr1" or (name is not None and _descends(name, BUFFER))
    except UNLOADABLE:
        return False  # verl's own error names it


def check_reward_model(config: DictConfig) -> Iterator[str]:
    """A reward model has GPUs of its own and a reward that asks it."""
    if not config.reward.reward_model.enable:
        return
    if not config.reward.reward_model.enable_resource_pool:
        yield (
            "reward.reward_model.enable is true without GPUs of its own: verl then scores after sampling, and rewards "
            "are missing where metrics read them. Set reward.reward_model.enable_resource_pool=true with "
            "n_gpus_per_node and nnodes, or reward.reward_model.enable=false"
        )
    if str(config.reward.custom_reward_function.path).startswith("pkg://reward_fns."):
        yield (
            f"reward.reward_model.enable is true, and {config.reward.custom_reward_function.path} never asks a reward "
            "model. Set reward.reward_model.enable=false, or name a reward of your own that asks it"
        )


def check_window(config: DictConfig) -> Iterator[str]:
    """A reward that ranks its metrics among recent ones has one process, and so one window."""
    workers = config.reward.num_workers
    if OmegaConf.select(config, "samr1.reward.window") is not None and workers > 1:
        yield (
            f"reward.num_workers is {workers} with samr1.reward.window: each worker would rank among its own answers "
            "only. Set reward.num_workers=1"
        )


def _fixed(config: DictConfig, keys: Mapping[str, Fixed]) -> Iterator[str]:
    for key, fixed in keys.items():
        value = OmegaConf.select(config, key, default=fixed.values[0])
        if value not in fixed.values:
            expected = " or ".join(str(each) for each in fixed.values[:2])
            yield f"{key} is {value}, expected {expected}: {fixed.reason}"


def _first_set(value: Any, key: str) -> str | None:
    """Key and value of the first leaf that is not null; None: all are."""
    if isinstance(value, DictConfig):
        leaves = (_first_set(part, f"{key}.{name!s}") for name, part in value.items())
        return next((leaf for leaf in leaves if leaf is not None), None)
    return None if value is None else f"{key} is {value}"


def _critic(config: DictConfig) -> Iterator[str]:
    """Without an estimator that reads its values, a critic is trained for nothing, and no step waits for it."""
    if config.algorithm.adv_estimator == "gae":
        return
    if config.critic.enable:
        yield (
            f"critic.enable is true, and the estimator {config.algorithm.adv_estimator} reads no values. "
            "Set critic.enable=null"
        )
    elif config.trainer.critic_warmup > 0 and not need_critic(config):
        yield (
            f"trainer.critic_warmup is {config.trainer.critic_warmup} without a critic: the policy is not trained in "
            "the first steps. Set trainer.critic_warmup=0"
        )


def _filters_of_sync(config: DictConfig, custom: bool) -> Iterator[str]:
    """verl's trainer `sync` gives a custom sampler no filters, and its own one ignores the maximum of draws."""
    groups, refill = config.algorithm.filter_groups, config.trainer.v1.sampler.get("sync_refill_failed_groups")
    wanted = [
        *(["algorithm.filter_groups.enable"] if groups.enable else []),
        *(["trainer.v1.sampler.sync_refill_failed_groups"] if refill else []),
    ]
    if wanted and custom:
        yield f"{wanted[0]} is true, and trainer.v1.trainer_mode=sync ignores it with {SAMPLER}. Set the mode to samr1"
    elif groups.enable and groups.max_num_gen_batches > 0:
        yield (
            f"algorithm.filter_groups.max_num_gen_batches is {groups.max_num_gen_batches}, and "
            "trainer.v1.trainer_mode=sync ignores it. Set the mode to samr1, or max_num_gen_batches=0"
        )


def _sampler_name(config: DictConfig) -> str | None:
    """The sampler as `module.Class`, or `file.py.Class`; None: verl's own."""
    custom = config.trainer.v1.sampler.custom_sampler
    return f"{custom.path}.{custom.name}".removeprefix("pkg://") if custom.path and custom.name else None


def _derived(key: str, name: str | None, wanted: str, reason: str) -> Iterator[str]:
    try:
        if name is not None and _descends(name, wanted):
            return
        problem = ""
    except UNLOADABLE as error:
        problem = f" It cannot be loaded: {error}."
    yield f"{key} is {name}, expected {wanted} or a class that derives from it: {reason}.{problem}"


def _descends(name: str, wanted: str) -> bool:
    """Whether a class is `wanted` or derives from it. Raises what its import raises."""
    if name == wanted:
        return True
    place, _, class_name = name.rpartition(".")
    module = load_module(place if place.endswith(".py") else f"pkg://{place}")
    bases = getattr(module, class_name).__mro__
    return any(f"{base.__module__}.{base.__qualname__}" == wanted for base in bases)
