"""The typed form of the recipe's root key `samr1:`.

The recipe has the values. Only keys that few recipes set have a default here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cachetools import LRUCache
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from samr1_verl import Samr1Error
from samr1_verl.answers import CAPS, Caps
from samr1_verl.geometry.frames import Frame
from samr1_verl.rows.record import Share

ROOT = "samr1"
# Sections of verl's configuration, for messages of several rooms.
ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"

Parsed = TypeVar("Parsed")


class ConfigError(Samr1Error, ValueError):
    """An invalid value of a recipe; each line has one key, its value and the valid values."""


class _Section(BaseModel):
    # strict: the reward and verl read the same keys without types, so a quoted number would reach them as text
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PromptConfig(_Section):
    """Prompt and image of the policy. The recipe copies these keys to `data.segmentation`, for the data set."""

    policy_size: tuple[PositiveInt, PositiveInt] | None = Field(
        strict=False,  # YAML has lists only
        description="[W, H] to which every image is resized; null: the processor's own smart resize",
    )
    frame: Frame = Field(description="absolute: pixels of the resized image (Qwen2.5-VL); thousand: 0-1000 (Qwen3-VL)")
    prompt: str = Field(description="name of a template in samr1_verl/prompts, or path of a .jinja or .txt file")


class RayServiceConfig(_Section):
    """`samr1.segmenter.service.ray`: replicas of the segmenter in the training cluster."""

    gpus: NonNegativeFloat | Literal["shared"] = Field(
        description="GPUs that Ray reserves per replica, or a fraction; shared: use GPUs that other workers reserve"
    )
    cpus: NonNegativeFloat = Field(description="CPUs that Ray reserves per replica; 0: none, where all are reserved")
    min_replicas: PositiveInt
    max_replicas: PositiveInt = Field(description="above min_replicas: Ray Serve scales with the load")

    @model_validator(mode="after")
    def _ordered(self) -> RayServiceConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below min_replicas {self.min_replicas}")
        return self


class HttpServiceConfig(_Section):
    """`samr1.segmenter.service.http`: servers started by `samr1 serve`. The token is the variable SAMR1_TOKEN."""

    addresses: tuple[Annotated[str, Field(pattern=r"^https?://[^/]+$")], ...] = Field(
        strict=False, min_length=1, description="such as http://10.0.0.5:8765; requests for an image go to one address"
    )
    identity: str | None = Field(
        default=None,
        min_length=1,
        description="the servers' segmenter, as /health names it; null: a process takes its first answer's",
    )


class ServiceConfig(_Section):
    """`samr1.segmenter.service`: the place of the segmenter, its cache, and the time limits of its answers.

    Keys with a default are for some modes only, or save memory.
    """

    mode: Literal["embedded", "ray", "http"] = Field(
        description="embedded: inside the reward worker; ray: an application in the training cluster; http: anywhere"
    )
    cache_gb: PositiveFloat = Field(description="maximum size of the embedding cache in host memory, per replica")
    cache_dir: str | None = Field(description="folder that keeps embeddings for later runs; null: memory only")
    cache_dtype: Literal["float32", "float16"] = Field(default="float32", description="dtype of cached embeddings")
    timeout_s: PositiveFloat = Field(
        default=600.0,
        description="seconds before an answer counts as failed; embedded: of one computation, without the queue",
    )
    attempt_s: PositiveFloat = Field(
        default=120.0, description="ray, http: seconds before an attempt is abandoned and tried elsewhere"
    )
    encode_ahead: bool = Field(default=True, description="ray, http: encode images when their rollouts start")
    ray: RayServiceConfig | None = None
    http: HttpServiceConfig | None = None

    @model_validator(mode="after")
    def _has_its_mode(self) -> ServiceConfig:
        if self.mode != "embedded" and getattr(self, self.mode) is None:
            raise ValueError(f"mode is {self.mode}, so the section {self.mode} is required")
        return self


class SegmenterConfig(_Section):
    """`samr1.segmenter`: the frozen promptable segmenter and the place where it runs.

    samr1_verl.segmenters has the backends. Equal configurations share one client per process
    (samr1_verl.service.client).
    """

    backend: str
    path: str = Field(min_length=1, description="folder with the weights, or a hub id for a backend that knows the hub")
    device: str = Field(min_length=1, description="auto, cpu, cuda or cuda:N")
    dtype: Literal["float32", "float16", "bfloat16"]
    encoder_precision: Literal["float32", "tf32", "bfloat16"] = Field(
        default="float32", description="of the encoder alone, with dtype float32; tf32: on GPUs"
    )
    multimask: bool = Field(default=True, description="best of three masks by predicted IoU; false: the single mask")
    service: ServiceConfig


class WindowConfig(_Section):
    """`samr1.reward.window` of reward_fns/dr_seg.py: the recent metrics with which new metrics are ranked."""

    path: str | None = Field(description="file that keeps the window between runs; null: memory only")
    step: PositiveInt = Field(description="number of responses per training step: prompts x group size")


class RewardConfig(_Section):
    """`samr1.reward`: constants and terms of the reward function.

    A reward refuses keys that it does not read. null is always accepted and means the reward's own value.
    """

    terms: dict[str, FiniteFloat | None] = Field(
        default_factory=dict,
        description="weights of terms by name; 0 logs a term without adding it to the score, null leaves it out",
    )
    caps: Caps | None = Field(default=None, description="maximum number of points and objects of a usable answer")
    thresholds: dict[Annotated[float, Field(ge=0, lt=1)], FiniteFloat] | None = Field(
        default=None, min_length=1, description="mask IoU above the key scores the value, otherwise 0"
    )
    window: WindowConfig | None = Field(default=None, description="reward_fns/dr_seg.py only")
    strict: bool | None = Field(
        default=None,
        description="published rewards without their gaps (docs/rewards.md): only the one final answer counts",
    )

    @property
    def weights(self) -> dict[str, float]:
        """`terms` without those that are left out."""
        return {name: weight for name, weight in self.terms.items() if weight is not None}

    @property
    def tiers(self) -> tuple[tuple[float, float], ...] | None:
        """`thresholds` as (IoU, score) pairs, the highest IoU first."""
        return None if self.thresholds is None else tuple(sorted(self.thresholds.items(), reverse=True))

    def usable(self) -> Caps:
        """`caps`; None: the parser's own values."""
        return self.caps or CAPS


class ObjectiveConfig(_Section):
    """The SAM-R1 objective's own keys. Clip range and KL coefficient are keys of verl's actor."""

    normalizer: Literal["group", "batch", "sequence"] = Field(
        description="divisor of a token's loss: the tokens of its group, of its mini-batch, or of its rollout"
    )
    standardize: bool = Field(description="divide advantages by the group's standard deviation")
    shuffle_rewards: bool = Field(description="control run: rewards are shuffled inside each group")


class RefineConfig(_Section):
    """`samr1.refine`: the policy looks at its mask and goes on; of the agent loop and the recipes `samr1_refine`."""

    max_turns: Annotated[int, Field(ge=2)] = Field(description="turns of the policy, at most; it may end earlier")
    turn_tokens: PositiveInt = Field(description="tokens of a turn, at most; a longer turn is cut off and the last one")
    look: str = Field(description="template of the text beside the image with the mask, named as samr1.prompt is")


class PrepareConfig(_Section):
    """Commands that make a missing input; the preflight and `samr1 doctor` print them."""

    data: str
    model: str
    segmenter: str


Bounds = Annotated[tuple[Share, Share], Field(strict=False)]


class KeepRowsConfig(_Section):
    """`samr1.keep_rows`: bounds [lowest, highest] of measured columns, ends included; other training rows are left out.

    The recipe copies it to `data.keep_rows`, for the data set.
    """

    ceiling: Bounds | None = Field(default=None, description="as samr1 data ceiling measures it, such as [0.5, 1]")
    success_rate: Bounds | None = Field(default=None, description="as samr1 data difficulty measures it: [0.1, 0.9]")
    gradient_chance: Bounds | None = Field(default=None, description="as samr1 data difficulty measures it")

    @model_validator(mode="after")
    def _ordered(self) -> KeepRowsConfig:
        for name, (low, high) in self.bounds().items():
            if low > high:
                raise ValueError(f"{name} is [{low:g}, {high:g}], expected [lowest, highest]")
        return self

    def bounds(self) -> dict[str, tuple[float, float]]:
        """The bounds that are set, by column."""
        return {name: value for name, value in self if value is not None}


class Samr1Config(PromptConfig):
    """The root key `samr1`."""

    keep_rows: KeepRowsConfig | None = None
    segmenter: SegmenterConfig
    reward: RewardConfig
    objective: ObjectiveConfig
    refine: RefineConfig | None = Field(default=None, description="null: the policy answers once")
    samples: NonNegativeInt = Field(
        description="number of validation rows whose answers and masks are kept at every validation, for samr1 report"
    )
    max_lost_share: Annotated[float, Field(ge=0, le=1)] = Field(
        description="share of a step's or a validation's rollouts that may be lost; more end the run with the fault"
    )
    progress_timeout_s: PositiveFloat = Field(description="seconds without a finished rollout that end the run")
    prepare: PrepareConfig


def samr1_config(config: DictConfig) -> Samr1Config:
    """The validated root key of a composed recipe. Raises ConfigError, with one line per invalid key."""
    if OmegaConf.select(config, ROOT) is None:
        raise ConfigError(
            "missing_key",
            ROOT,
            "the key is missing. Start from one of our recipes, for example +recipe=samr1, or copy the section "
            f"`{ROOT}:` of recipes/recipe/samr1.yaml",
        )
    return _validated(Samr1Config, config[ROOT], ROOT)


def prompt_config(data: DictConfig) -> PromptConfig:
    """The validated `data.segmentation` of verl's data section. Raises ConfigError."""
    section = data.get("segmentation")
    if section is None:
        raise ConfigError(
            "missing_key",
            "data.segmentation",
            "the key is missing. SegmentationDataset needs policy_size, frame and prompt there, as "
            "recipes/recipe/samr1.yaml sets them",
        )
    return _validated(PromptConfig, section, "data.segmentation")


def answer_tokens(config: DictConfig) -> int:
    """Maximum number of tokens of one answer: of a turn where the policy has several, else of the response."""
    turn = OmegaConf.select(config, f"{ROOT}.refine.turn_tokens")
    return int(config.data.max_response_length if turn is None else turn)


def refine_config(refine: Any) -> RefineConfig:
    """The validated `samr1.refine`, as rewards receive it. Raises ConfigError."""
    return _validated(RefineConfig, refine, f"{ROOT}.refine")


def keep_rows_config(data: DictConfig) -> dict[str, tuple[float, float]]:
    """The bounds of the validated `data.keep_rows` of verl's data section, by column. Raises ConfigError."""
    section = data.get("keep_rows")
    return {} if section is None else _validated(KeepRowsConfig, section, "data.keep_rows").bounds()


def segmenter_config(segmenter: Any) -> SegmenterConfig:
    """The validated `samr1.segmenter`, as rewards receive it. Raises ConfigError."""
    return _validated(SegmenterConfig, segmenter, f"{ROOT}.segmenter")


def reward_config(reward: Any) -> RewardConfig:
    """The validated `samr1.reward`, as rewards receive it; None: the reward's own values. Raises ConfigError."""
    return _validated(RewardConfig, {} if reward is None else reward, f"{ROOT}.reward")


def once_per_object(parse: Callable[[Any], Parsed]) -> Callable[[Any], Parsed]:
    """`parse` with a cache per argument object: verl passes the same configuration objects with every response.

    Objects are compared by identity, and are kept alive so that no other object gets the same id. Do not change them.
    """
    seen: LRUCache[int, tuple[Any, Parsed]] = LRUCache(maxsize=64)
    lock = threading.Lock()

    def parsed(value: Any) -> Parsed:
        with lock:
            entry = seen.get(id(value))
        if entry is None:
            entry = (value, parse(value))
            with lock:
                seen[id(value)] = entry
        return entry[1]

    return parsed


def hub_id_or_folder(value: str) -> str | Path:
    """A model path as verl and transformers read it: a folder (Path), or a hub id owner/name (str).

    A relative path such as data/policy has the form of a hub id. It counts as a path where its parent folder exists.
    """
    path = Path(value).expanduser()
    is_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value) and not path.exists() and not path.parent.is_dir()
    return value if is_id else path


def _validated(model: type[_Section], section: Any, prefix: str) -> Any:
    if isinstance(section, model):
        return section
    try:
        values = OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
        return model.model_validate(values)
    except OmegaConfBaseException as error:
        fault = str(error.msg or error).splitlines()[0]  # the other lines describe OmegaConf's own objects
        raise ConfigError("unresolved_value", str(error.full_key or prefix), fault) from error
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join([prefix, *(str(part) for part in problem["loc"])])
            value = "" if problem["type"] == "missing" else f", found {problem['input']!r}"
            lines.append(f"{key}: {problem['msg']}{value}. Set it in the recipe or as {key}=… on the command line")
        key, faults = "\n".join(lines).split(": ", 1)
        raise ConfigError("invalid_value", key, faults) from error
