"""From what somebody names on a command line to a policy and the settings it was trained with."""

from __future__ import annotations

from collections.abc import Sequence

from samr1_verl.config import ConfigError, samr1_config
from samr1_verl.inputs import check_segmenter
from samr1_verl.policies.base import Policy, PolicyError
from samr1_verl.policies.checkpoints import find, run_of
from samr1_verl.settings import Settings, compose_recipe, run_config

TRY_OUT, PAPER = "samr1_tiny", "samr1"


def settings_for(policy: str | None, recipe: str | None, overrides: Sequence[str], server: bool) -> Settings:
    """The settings of a policy that somebody names.

    Args:
        policy: as `checkpoints.find` takes it; None: the recipe's own.
        recipe: None: the configuration of the run that the policy is a checkpoint of; where it is none, `samr1`; and
            where no policy is named, `samr1_tiny`.
        overrides: key=value, laid over either.
        server: a policy is named by a server's address.

    Raises:
        ConfigError: the configuration is wrong, or the segmenter cannot be loaded here.
    """
    run = run_of(policy) if recipe is None else None
    config = run_config(run, overrides) if run is not None else None
    if config is None:
        config = compose_recipe(recipe or (PAPER if policy or server else TRY_OUT), overrides)
    settings = Settings.of(config)
    own = samr1_config(config).model_copy(update={"service": settings.service})
    if problems := list(check_segmenter(own)):
        raise ConfigError("\n".join(problems))
    return settings


def load_local(policy: str | None, settings: Settings, merge: bool = False, temperature: float = 0.0) -> Policy:
    """A policy in this process; None is the one that the recipe starts from. Raises PolicyError."""
    from samr1_verl.policies.local import LocalPolicy

    try:
        files = find(policy or settings.model, settings.model, merge)
    except PolicyError as error:
        if policy is not None:
            raise
        raise PolicyError(f"actor_rollout_ref.model.path: {error}. {settings.prepare_model}") from error
    return LocalPolicy(files, settings.max_new_tokens, temperature)
