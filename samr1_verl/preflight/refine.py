"""The dialogue of `samr1.refine`: agent loop, reward, segmenter and lengths fit each other."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from samr1_verl.config import ROLLOUT, ConfigError, RefineConfig, Samr1Config
from samr1_verl.preflight.policy_frame import FAMILIES, model_type_of
from samr1_verl.prompts.templates import load_prompt

AGENT_LOOP, LOOP = f"{ROLLOUT}.agent.default_agent_loop", "samr1_refine"
REWARD, OURS = "reward.custom_reward_function", "pkg://reward_fns."
IMAGES = f"{ROLLOUT}.engine_kwargs.vllm.limit_mm_per_prompt.image"


def check_refine(config: DictConfig, settings: Samr1Config) -> Iterator[str]:
    """A run has every part of the dialogue, or none of them."""
    loop, refine = OmegaConf.select(config, AGENT_LOOP), settings.refine
    if refine is None:
        if loop == LOOP:
            yield f"{AGENT_LOOP} is {loop}, and samr1.refine null. Start from +recipe=samr1_refine"
        return
    if loop != LOOP:
        yield f"samr1.refine is set, and {AGENT_LOOP} is {loop}, which asks once. Set it to {LOOP}"
    path = str(config.reward.custom_reward_function.path)
    if path.startswith(OURS) and path != f"{OURS}refine":
        yield (
            f"samr1.refine is set, and {REWARD}.path is {path}, which scores one answer, and a dialogue has several. "
            f"Set it to {OURS}refine, with reward_kwargs.refine=${{samr1.refine}}"
        )
    if settings.segmenter.service.mode == "embedded":
        yield (
            "samr1.segmenter.service.mode is embedded with samr1.refine: agent loop and reward worker would each load "
            "a segmenter and encode every image. Set samr1.segmenter.service.mode=ray"
        )
    try:
        load_prompt(refine.look, "samr1.refine.look")
    except ConfigError as error:
        yield str(error)
    images = OmegaConf.select(config, IMAGES)
    if config.actor_rollout_ref.rollout.name == "vllm" and images is not None and images < refine.max_turns:
        yield (
            f"{IMAGES} is {images}, and a dialogue of samr1.refine.max_turns={refine.max_turns} has as many images. "
            f"Set {IMAGES}={refine.max_turns}"
        )
    yield from _check_length(config, settings, refine)


def _check_length(config: DictConfig, settings: Samr1Config, refine: RefineConfig) -> Iterator[str]:
    """The turns, and the images between them, fit a response. The text beside an image is counted in the rollout."""
    family = FAMILIES.get(model_type_of(str(config.actor_rollout_ref.model.path)) or "")
    image = 0
    if family is not None and settings.policy_size is not None:
        width, height = (side // family.factor for side in settings.policy_size)
        image = width * height
    needed = refine.max_turns * refine.turn_tokens + (refine.max_turns - 1) * image
    limit = config.data.max_response_length
    if limit <= needed:
        yield (
            f"data.max_response_length is {limit}: {refine.max_turns} turns of {refine.turn_tokens} tokens and "
            f"{refine.max_turns - 1} images of {image} take {needed}, without the texts beside the images. Set it to "
            f"{needed} and the tokens of these texts, or a smaller samr1.refine.turn_tokens"
        )
