"""The agent loop `samr1_refine`: the policy answers, looks at the mask of its answer, and mends it or says `done`.

    actor_rollout_ref.rollout.agent.default_agent_loop: samr1_refine

A rollout is one sequence: prompt, turn, look, turn, … A look is the user's message of scoring/refinement.py, with the
image and its mask. The policy is trained on the tokens of its own turns alone; verl's builder of tokens gives those of
a look the mask 0. A fault of the segmenter ends the rollout with its exception, as it does in a reward.

The segmenter is the service of `samr1.segmenter`, which has the image's embedding from the first turn on; the reward
asks it once more. The texts of all turns reach the reward in `extra_info.turns`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from omegaconf import DictConfig
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.utils.profiler import simple_timer
from verl.utils.tokenizer import get_processor_token_id
from verl.workers.rollout.replica import TokenOutput

from samr1_verl.config import ConfigError, RefineConfig, once_per_object, samr1_config
from samr1_verl.scoring.refinement import Refinement, spoken
from samr1_verl.scoring.turns import TURNS

NAME = "samr1_refine"
MEDIA = ("image", "video")  # their tokens would shift the images of later turns, where a policy writes one


def _refinement(config: DictConfig) -> tuple[RefineConfig, Refinement]:
    samr1 = samr1_config(config)
    if samr1.refine is None:
        raise ConfigError(
            "no_refine_section",
            "samr1.refine",
            f"found null, expected max_turns, turn_tokens and look, which the agent loop {NAME} reads. Start from "
            "+recipe=samr1_refine",
        )
    return samr1.refine, Refinement(samr1.refine, samr1.segmenter, samr1.reward.usable())


_refinement_of = once_per_object(_refinement)


@dataclass
class Dialogue:
    """A rollout while it grows. `mask` and `log_probs` are of the tokens behind the prompt."""

    messages: list[dict[str, Any]]
    images: list[Any]
    prompt: int  # number of tokens of the prompt
    ids: list[int]
    mask: list[int] = field(default_factory=list)  # 1: written by the policy
    log_probs: list[float] | None = None  # 0.0 where the mask is 0; None: the engine gives none
    turns: list[str] = field(default_factory=list)  # their texts
    engine: dict[str, Any] = field(default_factory=dict)  # fields of the rollout engine


class RefineAgentLoop(AgentLoopBase):
    """verl's loop of one rollout. Its output has one row, with the images of all turns."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **item: Any) -> AgentLoopOutput:
        """One rollout.

        Args:
            sampling_params: verl's; `max_tokens` becomes `samr1.refine.turn_tokens`.
            item: an item of SegmentationDataset.

        Raises:
            ConfigError: `samr1.refine` is missing or wrong, or data.max_response_length is too small for its turns.
            RowError, ImageError, SegmenterError: as `Refinement.look`.
        """
        refine, refinement = _refinement_of(self.config)
        request = {
            "request_id": uuid4().hex,
            "sampling_params": {**sampling_params, "max_tokens": refine.turn_tokens},
            "mm_processor_kwargs": self._get_mm_processor_kwargs(),
            "priority": int(priority),
        }
        metrics: dict[str, Any] = {"num_preempted": -1}
        dialogue = await self._start(list(item["raw_prompt"]))
        while True:
            with simple_timer("generate_sequences", metrics):
                output = await self.server_manager.generate(
                    prompt_ids=dialogue.ids, image_data=list(dialogue.images), **request
                )
            if not await self._add_turn(dialogue, output, refine.turn_tokens):
                break
            with simple_timer("tool_calls", metrics):
                look = await refinement.look(item, dialogue.turns)
            if look is None:
                break
            await self._add_look(dialogue, look, refine)
        return AgentLoopOutput(
            prompt_ids=dialogue.ids[: dialogue.prompt],
            response_ids=dialogue.ids[dialogue.prompt :],
            response_mask=dialogue.mask,
            response_logprobs=dialogue.log_probs,
            multi_modal_data={"images": dialogue.images},
            mm_processor_kwargs=request["mm_processor_kwargs"],
            num_turns=2 * len(dialogue.turns),
            metrics=metrics,
            extra_fields={**dialogue.engine, TURNS: dialogue.turns, "turn_scores": [], "tool_rewards": []},
        )

    async def _start(self, messages: list[dict[str, Any]]) -> Dialogue:
        images = (await self.process_multi_modal_info(messages))["images"]
        self._assert_mm_supported(True)
        ids = await self.ct_build_initial_tokens(messages, images=images)
        return Dialogue(messages, list(images), len(ids), ids)

    async def _add_turn(self, dialogue: Dialogue, output: TokenOutput, turn_tokens: int) -> bool:
        """Add what the policy wrote. Returns whether the turn has an end, so that a look may follow."""
        tokens = self._without_media(output.token_ids)
        log_probs = output.log_probs[: len(tokens)] if output.log_probs else None
        if log_probs is not None and dialogue.log_probs is None:
            dialogue.log_probs = []
        merged, dialogue.mask, dialogue.log_probs = await self.ct_merge_assistant_token(
            dialogue.ids, tokens, dialogue.mask, dialogue.log_probs, assistant_logprobs=log_probs
        )
        dialogue.ids = merged.token_ids
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        dialogue.turns.append(text)
        dialogue.messages = [*dialogue.messages, spoken(text)]
        first = {name: value for name, value in dialogue.engine.items() if name == "min_global_steps"}
        dialogue.engine = {**output.extra_fields, **first}
        cut_off = len(tokens) >= turn_tokens and tokens[-1] != self.tokenizer.eos_token_id
        return len(tokens) == len(output.token_ids) > 0 and not cut_off

    def _without_media(self, tokens: list[int]) -> list[int]:
        """The tokens before the first one that stands for a part of an image or a video."""
        media = {get_processor_token_id(self.processor, name) for name in MEDIA}
        return tokens[: next((at for at, token in enumerate(tokens) if token in media), len(tokens))]

    async def _add_look(self, dialogue: Dialogue, look: dict[str, Any], refine: RefineConfig) -> None:
        messages = [*dialogue.messages, look]
        merged, dialogue.mask, dialogue.log_probs = await self.ct_merge_context_msg(
            dialogue.messages, messages, dialogue.ids, dialogue.mask, dialogue.log_probs
        )
        needed, limit = len(dialogue.mask) + refine.turn_tokens, self.rollout_config.response_length
        if needed > limit:
            raise ConfigError(
                "response_too_short",
                "data.max_response_length",
                f"found {limit}; turn {len(dialogue.turns) + 1} of a rollout needs {needed}. Set it to "
                "samr1.refine.max_turns times turn_tokens, and the tokens of an image and of the text of "
                "samr1.refine.look for each turn but the first",
            )
        dialogue.messages, dialogue.ids = messages, merged.token_ids
        dialogue.images.append(look["content"][0]["image"])
