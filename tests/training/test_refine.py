"""The agent loop `samr1_refine`: tokens and masks against the messages, ends of a dialogue, faults."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.workers.rollout.replica import TokenOutput

from samr1_verl.config import ConfigError, PromptConfig
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.policies.inference_config import compose_recipe
from samr1_verl.prompts.questions import Questions
from samr1_verl.rows.record import Record
from samr1_verl.scoring.refinement import COLOUR, picture
from samr1_verl.segmenters import SegmenterError
from samr1_verl.service import client, engine
from samr1_verl.training.dataset import SegmentationDataset
from samr1_verl.training.refine import RefineAgentLoop
from tests.errors import refused
from tests.masks import rectangle_in
from tests.processors import qwen_processor
from tests.service.fake import BoxSegmenter, image_file

SIDE, TOKENS = 56, 4  # of the policy's image, and its image tokens
SIZE = (40, 60)  # of the original image, H W
DONE = "<think>It fits.</think><answer>done</answer>"


def answer(x1: int, y1: int, x2: int, y2: int) -> str:
    box = {"bbox": [x1, y1, x2, y2], "points_1": [x1 + 1, y1 + 1], "points_2": [x2 - 1, y2 - 1]}
    return f"<think>Left.</think><answer>{json.dumps(box)}</answer>"


FIRST, SECOND = answer(5, 5, 30, 30), answer(7, 7, 40, 40)


class Server:
    """A rollout engine that writes these texts, each with its end unless it is cut off."""

    def __init__(self, processor: Any, texts: Sequence[str], log_probs: bool = True) -> None:
        self.tokenizer, self.texts, self.log_probs = processor.tokenizer, list(texts), log_probs
        self.asked: list[dict[str, Any]] = []

    async def generate(self, **request: Any) -> TokenOutput:
        self.asked.append(request)
        text = self.texts[len(self.asked) - 1]
        tokens = self.tokenizer(text if text.endswith("…") else f"{text}<|im_end|>", add_special_tokens=False)
        ids = tokens["input_ids"][: request["sampling_params"]["max_tokens"]]
        step = len(self.asked)
        log_probs = [-step - place / 1000 for place in range(len(ids))] if self.log_probs else None
        extra = {"min_global_steps": step, "max_global_steps": step}
        return TokenOutput(token_ids=ids, log_probs=log_probs, stop_reason="completed", extra_fields=extra)


class World:
    """A loop over one row, with the real service in front of a segmenter of boxes."""

    def __init__(self, folder: Path, changes: dict[str, Any]) -> None:
        self.processor = qwen_processor()
        config = compose_recipe("samr1_refine_tiny")
        update = {
            "samr1.policy_size": [SIDE, SIDE],
            "samr1.refine.turn_tokens": 120,
            "data.max_prompt_length": 200,
            "data.max_response_length": 600,
            "samr1.segmenter.service": {"mode": "embedded", "cache_gb": 1, "cache_dir": None},
            "data.encode_ahead": None,
        }
        for key, value in {**update, **changes}.items():
            OmegaConf.update(config, key, value, merge=False)
        self.config = config
        path, digest = image_file(folder, 7, SIZE)
        mask = rectangle_in(SIZE, 5, 5, 40, 30)
        record = Record(
            data_source="shapes", sentence="the red square", image=str(path), sha256=digest, height=SIZE[0],
            width=SIZE[1], masks=[encode_rle(mask)], boxes=[], points=[],
        )  # fmt: skip
        prompt = PromptConfig(policy_size=(SIDE, SIDE), frame="absolute", prompt="tiny")
        self.item = Questions(prompt, self.processor, {}).item(record, path, 3)

    async def run(self, *texts: str, log_probs: bool = True) -> tuple[Any, Server]:
        server = Server(self.processor, texts, log_probs)
        loop = RefineAgentLoop(
            trainer_config=DictConfigWrap(self.config),
            server_manager=server,
            tokenizer=self.processor.tokenizer,
            processor=self.processor,
            dataset_cls=SegmentationDataset,
            data_config=DictConfigWrap(self.config.data),
            hf_model_type="qwen2_5_vl",
        )
        return await loop.run({"temperature": 1.0, "logprobs": True}, priority=3, **copy.deepcopy(self.item)), server


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> BoxSegmenter:
    made = BoxSegmenter()
    monkeypatch.setattr(engine, "load_segmenter", lambda config: made)
    monkeypatch.setattr(client, "_clients", {})
    return made


@pytest.fixture
def world(tmp_path: Path, segmenter: BoxSegmenter, request: pytest.FixtureRequest) -> World:
    return World(tmp_path, getattr(request, "param", {}))


def reference(world: World, turns: Sequence[str], ended: bool = True) -> tuple[list[int], list[int], list[int]]:
    """Tokens of prompt and response, and the mask of the response, written from the messages alone."""
    shown = "<|vision_start|>" + "<|image_pad|>" * TOKENS + "<|vision_end|>"
    asked = f"<|im_start|>user\n{shown}segment the red square<|im_end|>\n<|im_start|>assistant\n"
    parts = []
    for number, turn in enumerate(turns):
        last = number == len(turns) - 1
        parts.append((turn + ("<|im_end|>" if ended or not last else ""), 1))
        if not last:
            parts.append(("\n" + asked, 0))
    encode = world.processor.tokenizer
    pieces = [(encode(text, add_special_tokens=False)["input_ids"], mask) for text, mask in parts]
    prompt = encode(asked, add_special_tokens=False)["input_ids"]
    return prompt, [i for ids, _ in pieces for i in ids], [mask for ids, mask in pieces for _ in ids]


@pytest.mark.parametrize("turns", [[FIRST, DONE], [FIRST, SECOND, DONE], [FIRST, SECOND, FIRST]])
async def test_tokens_and_mask_are_those_of_the_messages(world: World, turns: list[str]) -> None:
    output, server = await world.run(*turns)
    prompt, response, mask = reference(world, turns)
    assert output.prompt_ids == prompt and output.response_ids == response and output.response_mask == mask
    own = [value for value, kept in zip(output.response_logprobs, mask, strict=True) if kept]
    lengths = [
        len(world.processor.tokenizer(f"{turn}<|im_end|>", add_special_tokens=False)["input_ids"]) for turn in turns
    ]
    assert own == [-step - place / 1000 for step, length in enumerate(lengths, 1) for place in range(length)]
    assert not any(value for value, kept in zip(output.response_logprobs, mask, strict=True) if not kept)
    assert output.num_turns == 2 * len(turns) and output.extra_fields["turns"] == turns
    assert (output.extra_fields["min_global_steps"], output.extra_fields["max_global_steps"]) == (1, len(turns))
    for number, request in enumerate(server.asked):
        asked = [*prompt, *response][: len(request["prompt_ids"])]
        assert request["prompt_ids"] == asked and len(request["image_data"]) == number + 1
        assert request["sampling_params"] == {"temperature": 1.0, "logprobs": True, "max_tokens": 120}


async def test_the_policy_sees_the_mask_of_its_last_answer(world: World, segmenter: BoxSegmenter) -> None:
    output, _ = await world.run(FIRST, SECOND, DONE)
    plain, *looks = output.multi_modal_data["images"]
    scale = np.array([SIZE[1], SIZE[0]] * 2) / SIDE
    for look, box in zip(looks, [(5, 5, 30, 30), (7, 7, 40, 40)], strict=True):
        x1, y1, x2, y2 = np.round(np.array(box) * scale).astype(int)
        drawn = picture(world.item["extra_info"]["image"], rectangle_in(SIZE, x1, y1, x2, y2), (SIDE, SIDE))
        assert look.size == plain.size == (SIDE, SIDE) and look.tobytes() == drawn.tobytes() != plain.tobytes()
        assert COLOUR in {colour for _, colour in look.getcolors()}
    assert segmenter.encoded == [SIZE], "one encode for all turns"


@pytest.mark.parametrize("log_probs", [True, False])
async def test_a_policy_that_never_says_done_ends_at_the_last_turn(world: World, log_probs: bool) -> None:
    output, server = await world.run(FIRST, FIRST, FIRST, FIRST, log_probs=log_probs)
    assert len(server.asked) == 3 and output.extra_fields["turns"] == [FIRST] * 3
    assert (output.response_logprobs is None) != log_probs


@pytest.mark.slow
@pytest.mark.parametrize(
    "turns",
    [
        [DONE],
        ["<think>Nothing.</think><answer>[]</answer>"],
        ["no answer"],
        [""],
        [FIRST, "<think>Hm.</think><answer>{}</answer>"],
        [FIRST, ""],
        [FIRST, answer(40, 40, 30, 30)],
        [FIRST, answer(400, 400, 430, 430)],
    ],
    ids=["done at once", "no object", "text", "nothing", "no box", "nothing later", "inverted", "outside"],
)
async def test_a_turn_without_a_mask_is_the_last_one(world: World, turns: list[str]) -> None:
    output, server = await world.run(*turns, SECOND, DONE)
    prompt, response, mask = reference(world, turns)
    assert len(server.asked) == len(turns) and output.extra_fields["turns"] == turns
    assert (output.prompt_ids, output.response_ids, output.response_mask) == (prompt, response, mask)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>"])
async def test_an_image_token_of_the_policy_ends_its_turn_before_it(world: World, token: str) -> None:
    output, server = await world.run(FIRST, f"<think>a{token}b</think><answer>done</answer>", DONE)
    _, response, mask = reference(world, [FIRST, "<think>a"], ended=False)
    assert len(server.asked) == 2 and output.response_ids == response and output.response_mask == mask
    assert len(output.response_logprobs) == len(mask) and output.extra_fields["turns"] == [FIRST, "<think>a"]
    images = output.response_ids.count(world.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"))
    assert images == TOKENS * (len(output.multi_modal_data["images"]) - 1)


async def test_a_turn_without_its_end_is_the_last_one(world: World) -> None:
    long = f"{FIRST}{'x' * 60}…"
    output, server = await world.run(FIRST, long, DONE)
    assert len(server.asked) == 2 and sum(output.response_mask[-121:]) == 120
    assert output.response_mask == reference(world, [FIRST, long[:120]], ended=False)[2]


async def test_a_fault_of_the_segmenter_in_the_second_turn_is_raised(world: World, segmenter: BoxSegmenter) -> None:
    class FaultLater(Server):
        async def generate(self, **request: Any) -> TokenOutput:
            if len(self.asked) == 1:
                segmenter.fault = SegmenterError("no_memory", "the segmenter", "out of memory")
            return await super().generate(**request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.Server", FaultLater)
        with refused(SegmenterError, "decode_failed", "out of memory"):
            await world.run(FIRST, SECOND, DONE)


async def test_a_missing_image_is_an_error(world: World) -> None:
    Path(world.item["extra_info"]["image"]).unlink()
    with refused(ImageError, "no_such_image", world.item["extra_info"]["image"]):
        await world.run(FIRST, DONE)


@pytest.mark.parametrize("world", [{"data.max_response_length": 250}], indirect=True)
async def test_a_dialogue_that_has_no_room_is_an_error(world: World) -> None:
    with refused(ConfigError, "response_too_short", "data.max_response_length: found 250", "turn 2 of", "needs 2"):
        await world.run(FIRST, DONE)


@pytest.mark.parametrize("world", [{"samr1.refine": None}], indirect=True)
async def test_a_recipe_without_the_section_is_an_error(world: World) -> None:
    with refused(ConfigError, "no_refine_section", "samr1.refine: found null", "samr1_refine"):
        await world.run(FIRST)
