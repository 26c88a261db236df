"""The recipe's root key `samr1:`, typed. The recipe holds the values; a default is for what few recipes set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from samr1_verl.geometry.frames import Frame
from samr1_verl.prompts.templates import prompt_names

ROOT = "samr1"


class ConfigError(ValueError):
    """A recipe value that cannot be used; each line names one key, what it is and what it may be."""


class _Section(BaseModel):
    # strict: the reward and verl read the same keys untyped, so a quoted number would reach them as text
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PromptConfig(_Section):
    """What the policy sees. The recipe repeats it as `data.segmentation`, which is where verl's data set reads it."""

    policy_size: tuple[PositiveInt, PositiveInt] | None = Field(
        strict=False,  # YAML has lists only
        description="[W, H] that every image is resized to for the policy; null: the processor's own smart resize",
    )
    frame: Frame = Field(description="absolute: pixels of the resized image (Qwen2.5-VL); thousand: 0-1000 (Qwen3-VL)")
    prompt: str = Field(description="name of a template in samr1_verl/prompts")

    @field_validator("prompt")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in prompt_names():
            raise ValueError(f"expected one of {', '.join(prompt_names())}")
        return name


class SegmenterConfig(_Section):
    """The frozen promptable segmenter. Which backends exist is the business of samr1_verl.segmenters."""

    backend: str
    path: str = Field(min_length=1, description="folder with the weights, or a hub id for a backend that knows the hub")
    device: str = Field(min_length=1, description="auto, cpu, cuda or cuda:N")
    dtype: Literal["float32", "float16", "bfloat16"]
    multimask: bool = Field(default=True, description="best of three masks by predicted IoU; false: the single mask")


class RayServiceConfig(_Section):
    """`samr1.service.ray`: replicas of the segmenter in the training cluster."""

    gpus: NonNegativeFloat | Literal["shared"] = Field(
        description="of a replica: what Ray reserves, a fraction or whole ones; shared: GPUs that others have reserved"
    )
    cpus: NonNegativeFloat = Field(description="of a replica; 0 finds a place beside workers that reserve everything")
    min_replicas: PositiveInt
    max_replicas: PositiveInt = Field(description="more than min_replicas: Ray Serve scales with the load")

    @model_validator(mode="after")
    def _ordered(self) -> RayServiceConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below min_replicas {self.min_replicas}")
        return self


class HttpServiceConfig(_Section):
    """`samr1.service.http`: segmenters behind `samr1 serve`. The token comes from the environment (SAMR1_TOKEN)."""

    addresses: tuple[Annotated[str, Field(pattern=r"^https?://[^/]+$")], ...] = Field(
        strict=False, min_length=1, description="such as http://10.0.0.5:8765; an image's requests go to one of them"
    )


class ServiceConfig(_Section):
    """Where the segmenter runs, how much memory its embeddings may take, and how long an answer is waited for.

    What has a default matters to some modes only, or is an economy that a recipe may ask for.
    """

    mode: Literal["embedded", "ray", "http"] = Field(
        description="embedded: inside the reward worker; ray: an application in the training cluster; http: anywhere"
    )
    cache_gb: PositiveFloat = Field(description="bound of the embedding cache in host memory, of each replica")
    cache_dir: str | None = Field(description="folder that keeps embeddings for later runs; null: memory only")
    cache_dtype: Literal["float32", "float16"] = Field(default="float32", description="of float32 embeddings when kept")
    timeout_s: PositiveFloat = Field(default=600.0, description="ray, http: an answer that takes longer is a fault")
    attempt_s: PositiveFloat = Field(default=120.0, description="ray, http: then another replica or address is asked")
    encode_ahead: bool = Field(default=True, description="ray, http: images are encoded when their rollouts start")
    ray: RayServiceConfig | None = None
    http: HttpServiceConfig | None = None

    @model_validator(mode="after")
    def _has_its_mode(self) -> ServiceConfig:
        if self.mode != "embedded" and getattr(self, self.mode) is None:
            raise ValueError(f"mode is {self.mode}, so the section {self.mode} must be there")
        return self


class ObjectiveConfig(_Section):
    """The SAM-R1 objective's own keys; clip range and KL coefficient are verl's keys of the actor."""

    normalizer: Literal["group", "batch", "sequence"]
    standardize: bool
    shuffle_rewards: bool = Field(description="control run: rewards are shuffled inside each group")


class PrepareConfig(_Section):
    """What to type for an input that is not there; the preflight and `samr1 doctor` print it."""

    data: str
    model: str
    segmenter: str


class Samr1Config(PromptConfig):
    """The whole root key."""

    segmenter: SegmenterConfig
    service: ServiceConfig
    reward: dict[str, Any] | None = Field(
        description="constants of reward_fns/samr1.py, which checks them; null where another reward is trained"
    )
    objective: ObjectiveConfig
    samples: NonNegativeInt = Field(
        description="validation rows whose answers and masks are kept at every validation, for samr1 report"
    )
    prepare: PrepareConfig


def samr1_config(config: DictConfig) -> Samr1Config:
    """The validated root key of a composed recipe. Raises ConfigError, one line for each wrong key."""
    if OmegaConf.select(config, ROOT) is None:
        raise ConfigError(
            f"{ROOT}: the key is missing. Start from one of our recipes, for example +recipe=samr1, "
            f"or copy the section `{ROOT}:` of recipes/recipe/samr1.yaml"
        )
    return _validated(Samr1Config, config[ROOT], ROOT)


def prompt_config(data: DictConfig) -> PromptConfig:
    """The validated `data.segmentation` of verl's data section. Raises ConfigError."""
    section = data.get("segmentation")
    if section is None:
        raise ConfigError(
            "data.segmentation: the key is missing. SegmentationDataset needs policy_size, frame and prompt there, "
            "as recipes/recipe/samr1.yaml sets them"
        )
    return _validated(PromptConfig, section, "data.segmentation")


def service_configs(segmenter: Any, service: Any) -> tuple[SegmenterConfig, ServiceConfig]:
    """The validated `samr1.segmenter` and `samr1.service`, as rewards receive them. Raises ConfigError."""
    return (
        _validated(SegmenterConfig, segmenter, f"{ROOT}.segmenter"),
        _validated(ServiceConfig, service, f"{ROOT}.service"),
    )


def _validated(model: type[_Section], section: Any, prefix: str) -> Any:
    try:
        values = OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
        return model.model_validate(values)
    except OmegaConfBaseException as error:
        what = str(error.msg or error).splitlines()[0]  # the lines after it describe OmegaConf's own objects
        raise ConfigError(f"{error.full_key or prefix}: {what}") from error
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join([prefix, *(str(part) for part in problem["loc"])])
            found = "" if problem["type"] == "missing" else f", found {problem['input']!r}"
            lines.append(f"{key}: {problem['msg']}{found}. Set it in the recipe or as {key}=… on the command line")
        raise ConfigError("\n".join(lines)) from error
