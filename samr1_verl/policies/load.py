"""Loading of a policy that a command line names, and of the configuration that it was trained with."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from samr1_verl.config import ConfigError
from samr1_verl.policies.base import Policy, PolicyError, Sampling
from samr1_verl.policies.checkpoints import Files, find, run_of
from samr1_verl.policies.dialogue import RefiningPolicy
from samr1_verl.policies.inference_config import InferenceConfig, compose_recipe, run_config
from samr1_verl.prompts.templates import is_file, prompt_identity

TRY_OUT, PAPER = "samr1_tiny", "samr1"
# Names of the published policies of Seg-Zero and VisionReasoner (Ricky06662 on the hub) and of StAR (sj9909).
PUBLISHED = frozenset(
    ("seg-zero-7b", "seg-zero-7b-best-on-reasonsegtest", "visionreasoner-7b", "star-7b", "star-8b", "star-32b")
)
_log = logging.getLogger(__name__)


def config_for(policy: str | None, recipe: str | None, overrides: Sequence[str], server: bool) -> InferenceConfig:
    """The configuration of a policy that a user names.

    Args:
        policy: as for `checkpoints.find`; None: the recipe's model.
        recipe: name of a recipe. None: the configuration of the policy's training run; `samr1` where the policy has no
            run; `samr1_tiny` where neither a policy nor a server is named.
        overrides: key=value, applied to the recipe or the run's configuration.
        server: whether the policy is behind a server.

    Raises:
        ConfigError: the configuration is wrong, or the segmenter cannot be loaded here.
    """
    run = run_of(policy) if recipe is None else None
    composed = run_config(run, overrides) if run is not None else None
    if composed is None:
        composed = compose_recipe(recipe or (PAPER if policy or server else TRY_OUT), overrides)
    inference = InferenceConfig.of(composed)
    if problems := list(inference.problems()):
        raise ConfigError("segmenter_unusable", "samr1.segmenter", "\n".join(problems))
    return inference


def other_words(policy: str | None, prompt: str) -> str | None:
    """A notice where a published policy gets one of our templates, which are worded anew; None: there is none to give.

    Args:
        policy: hub id, folder or name on a server. None: the recipe's own model.
        prompt: `samr1.prompt`.
    """
    name = (policy or "").rstrip("/").rsplit("/", 1)[-1]
    if name.lower() not in PUBLISHED or is_file(prompt):
        return None
    return (
        f"{policy}: {name} was trained with its authors' own prompt, and samr1.prompt={prompt} asks in other words, so "
        "figures may differ from the published ones. For the original question write the authors' prompt to a .jinja "
        "or .txt file with {{ sentence }} in it, and add --set samr1.prompt=FILE"
    )


@dataclass(frozen=True)
class PolicyChoice:
    """A policy as a user names it, not loaded yet.

    Args:
        config: result of `config_for`.
        policy: as for `checkpoints.find`; None: the model that the recipe's training starts from.
        server: address of an OpenAI-compatible server with the policy; None: a policy in this process.
        model: name of the policy on the server; None: the server's only model.
        merge: as for `checkpoints.find`.
        temperature: sampling temperature; 0: greedy. `top_k` and `top_p` are those of the recipe's rollouts.
        parallel: maximum number of concurrent requests to a server.
        lenient: read the answers of a dialogue leniently, as `answers.parse_answer` does; without effect where the
            policy answers once.
    """

    config: InferenceConfig
    policy: str | None = None
    server: str | None = None
    model: str | None = None
    merge: bool = False
    temperature: float = 0.0
    parallel: int = 16
    lenient: bool = False

    def identity(self) -> dict[str, Any]:
        """The policy's files, its sampling and its dialogue, in JSON values.

        Equal identities give equal answers; those of a dialogue depend on the segmenter as well.

        Raises:
            PolicyError: the policy's files do not exist.
        """
        sampling = {"max_new_tokens": self.config.max_new_tokens, **self._sampling().as_json(), **self._dialogue()}
        if self.server is not None:
            return {"server": self.server, "model": self.model, **sampling}
        files = self._files()
        adapter = None if files.adapter is None else str(files.adapter)
        model = {"model": str(files.model), "adapter": adapter, "files": files.stamp(), "dtype": self.config.dtype}
        return model | sampling

    def load(self) -> Policy:
        """The policy, ready to answer; with `samr1.refine` it answers by dialogue.

        Logs a notice where it is a published one that is asked in other words.

        Raises:
            PolicyError: its files or its server cannot be used.
            ConfigError: a package for --server is not installed, or a template cannot be used.
        """
        config, policy = self.config, self._load()
        if notice := other_words(getattr(policy, "model_name", self.policy), config.prompt.prompt):
            _log.warning("%s", notice)
        if config.refine is None:
            return policy
        return RefiningPolicy(policy, config.refine, config.segmenter, config.caps, self.lenient)

    def _load(self) -> Policy:
        """The policy that answers a turn. Raises as `load`."""
        config = self.config
        extra = {"processor_kwargs": config.processor_kwargs, "template_kwargs": config.template_kwargs}
        if self.server is None:
            from samr1_verl.policies.local import LocalPolicy

            return LocalPolicy(self._files(), config.max_new_tokens, self._sampling(), config.dtype, **extra)
        if missing := [name for name in ("httpx", "tenacity") if importlib.util.find_spec(name) is None]:
            raise ConfigError(
                "not_installed",
                "--server",
                f"{', '.join(missing)} is not installed. Type: pip install 'samr1-verl[service]'",
            )
        from samr1_verl.policies.server import ServerPolicy

        sampling = self._sampling()
        return ServerPolicy(self.server, self.model, config.max_new_tokens, sampling, self.parallel, **extra)

    def _dialogue(self) -> dict[str, Any]:
        """The rules of the dialogue; empty where the policy answers once."""
        refine = self.config.refine
        return {} if refine is None else {"refine": refine.model_dump(mode="json") | prompt_identity(refine.look)}

    def _sampling(self) -> Sampling:
        return replace(self.config.sampling, temperature=self.temperature)

    def _files(self) -> Files:
        try:
            return find(self.policy or self.config.model, self.config.model, self.merge)
        except PolicyError as error:
            if self.policy is not None:
                raise
            raise PolicyError(
                "model_path_unusable", "actor_rollout_ref.model.path", f"{error}. {self.config.prepare.model}"
            ) from error


def load_local(policy: str | None, config: InferenceConfig, merge: bool = False, lenient: bool = False) -> Policy:
    """A policy in this process; None: the model that the recipe's training starts from. Raises PolicyError."""
    return PolicyChoice(config, policy, merge=merge, lenient=lenient).load()
