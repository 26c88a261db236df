"""The preflight: it checks a run before Ray starts, and ends a run that cannot work with a list of all problems.

Recipes name it under `hydra.callbacks`. So `python -m verl.trainer.main_ppo +recipe=…` runs it without a change to
verl, after Hydra has composed the configuration and before verl's main function gets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from samr1_verl.config import ConfigError, samr1_config
from samr1_verl.preflight import checks, inputs, options, policy_frame, servers
from samr1_verl.preflight.refine import check_refine

EXIT_STATUS = 2


def examine_config(config: DictConfig) -> Iterator[tuple[str, str, list[str]]]:
    """Checks of the settings and inputs of a run: one (subject, detail, problems) per subject.

    A problem says what to do. The checks stop after a subject whose problems would make later checks meaningless.
    """
    if wrong_program := list(options.check_entry_point(config)):
        yield "program", "verl's main_ppo", wrong_program
        return
    try:
        settings = samr1_config(config)
    except ConfigError as error:
        yield "samr1", "the recipe's own section", str(error).splitlines()
        return
    wrong_types = list(checks.check_types(config))
    yield "values", "types and ranges of verl's keys", wrong_types
    if wrong_types:
        return
    prepare, model, rollout = settings.prepare, config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
    yield "objective", "estimator, loss and KL fit each other", list(checks.check_objective(config))
    groups = (options.check_options, options.check_trainer, options.check_reward_model, options.check_window)
    unread = [problem for check in groups for problem in check(config)]
    yield "options", f"every key is read, trainer {config.trainer.v1.trainer_mode}", unread
    yield "lengths", "a prompt and an answer fit the rollout", list(checks.check_lengths(config))
    yield "micro-batches", "each worker gets whole micro-batches", list(checks.check_micro_batches(config))
    yield "packages", f"rollout {rollout.name}", list(checks.check_packages(config))
    yield "resources", f"device {config.trainer.device}", list(checks.check_resources(config))
    turns = 1 if settings.refine is None else settings.refine.max_turns
    yield "turns", f"{turns} a rollout", list(check_refine(config, settings))
    yield "prompt", settings.prompt, list(inputs.check_prompt(settings))
    wrong_rows = list(inputs.check_data(config, prepare.data))
    yield "data", str(config.data.train_files), wrong_rows
    yield "model", str(model.path), list(inputs.check_model(config, prepare.model))
    fit = [*policy_frame.check_frame(config, settings), *policy_frame.check_fused(config)]
    yield "frame", f"{settings.frame}, fused log-probs {model.use_fused_kernels}", fit
    reward = str(config.reward.custom_reward_function.path)
    yield "reward", reward, list(inputs.check_reward(config, sound_rows=not wrong_rows))
    if inputs.uses_segmenter(config):
        place = list(checks.check_place(config))
        service = [*inputs.check_segmenter(settings), *servers.check_servers(settings)]
        yield "segmenter", settings.segmenter.path, [*place, *service]


class Preflight(Callback):
    """Hydra callback that exits with status 2 and one message on standard error where the run cannot work."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a single run, before its folder is made."""
        self.check(config)
        # verl passes these to Ray unresolved, so an interpolation would reach the workers as text.
        OmegaConf.resolve(config.ray_kwargs)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a job of a sweep (`-m`), which has its own values."""
        if config.hydra.mode == RunMode.MULTIRUN:
            self.check(config)

    def check(self, config: DictConfig) -> None:
        """Print all problems and exit, or print warnings and return."""
        problems = [problem for _, _, problems in examine_config(config) for problem in problems]
        if not problems:
            for warning in checks.advice(config):
                typer.echo(f"samr1: warning: {warning}", err=True)
            return
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, start=1))
        typer.echo(f"samr1: this run cannot start:\n{lines}", err=True)
        # SystemExit, because Hydra turns other exceptions of a callback into a warning and starts the job.
        raise SystemExit(EXIT_STATUS)
