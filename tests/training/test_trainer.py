"""verl's trainer with our loss: what it sends to the actor, and when it refuses."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pytest
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from samr1_verl.config import samr1_config
from samr1_verl.training.trainer import Trainer, actor_loss, build_actor_loss
from tests.composing import compose_recipe


@pytest.fixture(scope="module")
def recipe() -> DictConfig:
    return compose_recipe("samr1")


@pytest.fixture
def config(recipe: DictConfig) -> DictConfig:
    """The paper's recipe, for a test to change."""
    return copy.deepcopy(recipe)


def test_verl_finds_the_trainer_by_the_recipes_mode(config: DictConfig) -> None:
    assert get_trainer_cls(config.trainer.v1.trainer_mode) is Trainer


def test_the_actors_loss_leaves_kl_to_us_and_survives_the_way_to_the_worker(config: DictConfig) -> None:
    config.actor_rollout_ref.actor.kl_loss_coef = 0.25
    loss = cloudpickle.loads(cloudpickle.dumps(build_actor_loss(config)))
    assert loss.func is actor_loss
    assert loss.keywords["kl_coef"] == 0.25
    assert loss.keywords["kl_type"] == "low_var_kl"
    assert loss.keywords["config"].use_kl_loss is False
    assert loss.keywords["config"].policy_loss.normalizer == "group"
    assert config.actor_rollout_ref.actor.use_kl_loss, "verl still computes the reference's log-probs"


@pytest.mark.parametrize("use_kl", [True, False])
def test_the_loss_reaches_the_actor_once_everything_is_set_up(
    use_kl: bool, config: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.actor_rollout_ref.actor.use_kl_loss = use_kl
    events: list = []
    trainer = object.__new__(Trainer)  # its constructor starts the run's processes
    trainer.config, trainer._samr1 = config, samr1_config(config)
    trainer.tokenizer, trainer.val_dataset = None, [{"index": index} for index in range(31)]
    trainer.actor_rollout_wg = SimpleNamespace(set_loss_fn=events.append)
    monkeypatch.setattr(PPOTrainerSync, "on_init_end", lambda self: events.append("verl"))
    trainer.on_init_end()
    assert events[0] == "verl"
    assert [event.func for event in events[1:]] == [actor_loss] * use_kl
    assert trainer._chosen == list(range(0, 31, 2)), "16 rows, spread evenly"


def test_another_loss_keeps_verls_own_kl_term(config: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.actor_rollout_ref.actor.policy_loss.loss_mode = "vanilla"
    trainer = object.__new__(Trainer)
    trainer.config, trainer._samr1 = config, samr1_config(config)
    trainer.tokenizer, trainer.val_dataset = None, [{"index": 0}]
    monkeypatch.setattr(PPOTrainerSync, "on_init_end", lambda self: None)
    trainer.on_init_end()  # without actor_rollout_wg it could not set a loss


def test_the_buffer_must_keep_what_validation_needs(config: DictConfig) -> None:
    trainer = object.__new__(Trainer)
    config.trainer.v1.sampler.custom_sampler.path = "pkg://verl.trainer.ppo.v1.replay_buffer"
    trainer.config, trainer.trainer_mode = config, "sync"
    with pytest.raises(ValueError, match=r"custom_sampler: .*ReplayBuffer,.*training.replay_buffer"):
        trainer._build_replay_buffer()


def test_a_run_resumes_from_a_step_when_all_that_the_step_leaves_is_on_disk(
    config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verl's order: checkpoint, validation, metrics, next step. verl's own part is its real one, for a step."""
    events: list[str] = []

    def event(name: str) -> Callable[..., None]:
        return lambda *_, **__: events.append(f"{name}, named: {find_latest_ckpt_path(str(tmp_path))}")

    config.trainer.default_local_dir, config.trainer.max_actor_ckpt_to_keep = str(tmp_path), 1
    trainer = object.__new__(Trainer)
    trainer.config, trainer.use_critic, trainer.trainer_mode = config, False, "sync"
    trainer._saved, trainer._unnamed = [], None
    trainer.actor_rollout_wg = SimpleNamespace(
        save_checkpoint=lambda folder, *_, **__: Path(folder).mkdir(parents=True)
    )
    trainer.train_dataloader = SimpleNamespace(state_dict=dict)
    trainer.checkpoint_callback = SimpleNamespace(on_save=event("saved"))
    trainer.logger = SimpleNamespace(
        logger={"tensorboard": SimpleNamespace(writer=SimpleNamespace(flush=event("flush")))}
    )
    trainer._init_dump_executor()
    for trainer.global_steps in (2, 4):
        trainer._save_checkpoint()
        trainer._dump_futures.append(trainer._dump_executor.submit(event("samples")))
        event("logged")()
        trainer.on_step_begin()
    trainer.on_step_begin()  # a step without a checkpoint
    trainer.global_steps = 5
    trainer._save_checkpoint()
    trainer._shutdown_dump_executor()

    folders = [f"{tmp_path}/global_step_{step}" for step in (2, 4, 5)]
    assert {line.partition(", named: ")[::2] for line in events if "saved" in line} == {
        ("saved", "None"), ("saved", folders[0]), ("saved", folders[1]),
    }  # fmt: skip
    assert [line for line in events if "flush" in line] == [
        f"flush, named: {named}" for named in ("None", *folders[:2])
    ], "the last thing before the name"
    assert len([line for line in events if "samples" in line and "None" not in line]) == 1
    assert find_latest_ckpt_path(str(tmp_path)) == folders[2]
    assert [(Path(folder) / "actor").exists() for folder in folders] == [False, False, True]
    assert config.actor_rollout_ref.actor.checkpoint.async_save is False, "the configuration is as it was"
    assert config.trainer.max_actor_ckpt_to_keep == 1


def test_verl_then_takes_it_for_the_synchronous_trainer(config: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    monkeypatch.setattr(PPOTrainerSync, "__init__", lambda self, config: seen.append(config.trainer.v1.trainer_mode))
    Trainer(config)
    assert seen == ["sync"]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("algorithm.adv_estimator", "grpo", ["adv_estimator is 'grpo'", "loss_mode 'samr1'", "both to samr1"]),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", "vanilla", ["loss_mode 'vanilla'", "both to samr1"]),
        ("distillation.enabled", True, ["distillation.enabled: found true", "loss samr1"]),
    ],
)
def test_what_the_loss_cannot_do_is_refused(config: DictConfig, key: str, value: object, named: list[str]) -> None:
    OmegaConf.update(config, key, value)
    with pytest.raises(ValueError) as found:
        build_actor_loss(config)
    assert all(name in str(found.value) for name in named), str(found.value)
