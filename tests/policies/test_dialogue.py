"""A policy that looks at its mask: what it is shown, when it ends, and that a server sees the same as this process."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samr1_verl.config import ConfigError, RefineConfig
from samr1_verl.policies.base import Policy
from samr1_verl.policies.checkpoints import Files
from samr1_verl.policies.dialogue import RefiningPolicy, turn_seed
from samr1_verl.policies.inference_config import InferenceConfig, compose_recipe
from samr1_verl.policies.load import PolicyChoice
from samr1_verl.policies.local import LocalPolicy
from samr1_verl.policies.server import ServerPolicy
from samr1_verl.prompts.questions import Questions
from samr1_verl.scoring.refinement import picture
from samr1_verl.segmenters.base import SegmenterError
from samr1_verl.service.client import get_client
from tests.errors import refused
from tests.evaluation.world import SIZE_WH, inference_config
from tests.policies.chat_server import NAME, ChatServer, serving
from tests.policies.scripted import DONE, REFINE, UNUSABLE, Scripted, box
from tests.policies.test_server import questions
from tests.row_files import make_record

FIRST, SECOND, THIRD = box(4, 4, 20, 20), box(16, 12, 32, 24), box(16, 12, 40, 24)


def refining(policy: Policy, segmenter: str = "boxes,0", **changes: Any) -> RefiningPolicy:
    config = inference_config(segmenter)
    return RefiningPolicy(policy, REFINE.model_copy(update=changes), config.segmenter, config.caps)


def items_in(folder: Path, count: int = 1) -> list[dict[str, Any]]:
    """Rows of images of different sizes; the policy sees all of them at SIZE_WH."""
    asked = Questions(inference_config().prompt, None, {})
    names = [(f"{row}.png", (64 + 32 * row, 48)) for row in range(count)]
    return [asked.item(make_record(folder, *named), folder / named[0], row) for row, named in enumerate(names)]


async def said(folder: Path, *script: str, **changes: Any) -> tuple[Any, Scripted]:
    policy = Scripted(script)
    (reply,) = await refining(policy, **changes).answer(items_in(folder))
    return reply, policy


async def test_it_sees_the_mask_of_its_answer_and_the_last_answer_counts(tmp_path: Path) -> None:
    (item,), policy = items_in(tmp_path), Scripted([FIRST, SECOND, DONE])
    before = list(item["raw_prompt"])
    (reply,) = await refining(policy).answer([item], seed=5)
    assert reply == SECOND and reply.turns == (FIRST, SECOND, DONE) and reply.tokens == 30
    assert item["raw_prompt"] == before, "the item stays as it was"
    assert [len(asked["raw_prompt"]) for (asked,) in policy.asked] == [1, 3, 5]
    messages = policy.asked[-1][0]["raw_prompt"]
    assert messages[:1] == before and [message["role"] for message in messages[1:]] == ["assistant", "user"] * 2
    assert [messages[at]["content"][0]["text"] for at in (1, 3)] == [FIRST, SECOND]
    for at, (x1, y1, x2, y2) in ((2, (4, 4, 20, 20)), (4, (16, 12, 32, 24))):
        shown, text = messages[at]["content"]
        mask = np.zeros(SIZE_WH[::-1], dtype=bool)
        mask[y1:y2, x1:x2] = True
        assert np.array_equal(shown["image"], picture(item["extra_info"]["image"], mask, SIZE_WH))
        assert text["text"] == "segment the red rectangle"
    assert policy.seeds == [5, turn_seed(5, 1), turn_seed(5, 2)] and len(set(policy.seeds)) == 3


async def test_every_end_of_a_dialogue(tmp_path: Path) -> None:
    reply, _ = await said(tmp_path, FIRST, DONE)
    assert reply == FIRST and reply.turns == (FIRST, DONE)
    reply, policy = await said(tmp_path, FIRST, SECOND, THIRD, DONE)
    assert reply == THIRD and reply.turns == (FIRST, SECOND, THIRD) and len(policy.asked) == 3, "it never says done"
    reply, _ = await said(tmp_path, FIRST, SECOND, THIRD, max_turns=2)
    assert reply.turns == (FIRST, SECOND)
    reply, policy = await said(tmp_path, FIRST, UNUSABLE, DONE)
    assert reply == UNUSABLE and reply.turns == (FIRST, UNUSABLE), "an unusable answer ends it, and counts"
    for only in (UNUSABLE, DONE, ""):
        reply, policy = await said(tmp_path, only, FIRST)
        assert reply == only and reply.turns == (only,) and len(policy.asked) == 1


async def test_a_turn_that_is_cut_off_is_the_last(tmp_path: Path) -> None:
    policy = Scripted([FIRST, SECOND, DONE], cut_off=[SECOND])
    (reply,) = await refining(policy).answer(items_in(tmp_path))
    assert reply.turns == (FIRST, SECOND) and not reply.ended


async def test_those_that_go_on_are_asked_together_and_an_image_is_encoded_once(tmp_path: Path) -> None:
    items = items_in(tmp_path, 4)
    policy = Scripted([FIRST, SECOND, THIRD], [FIRST, DONE], [UNUSABLE], [SECOND, FIRST, DONE])
    refined = refining(policy, "together,0")
    client = get_client(inference_config("together,0").segmenter)
    encodes = client.counters().encodes
    replies = await refined.answer(items)
    assert [[item["extra_info"]["index"] for item in asked] for asked in policy.asked] == [
        [0, 1, 2, 3],
        [0, 1, 3],
        [0, 3],
    ]
    assert replies == [THIRD, FIRST, UNUSABLE, FIRST] and [reply.tokens for reply in replies] == [30, 20, 10, 30]
    assert client.counters().encodes - encodes == 3, "one each, and none for the row without a mask"


async def test_a_fault_of_the_segmenter_ends_it_and_names_row_and_turn(tmp_path: Path) -> None:
    class Faulty:
        async def segment(self, *_: Any) -> Sequence[Any]:
            raise SegmenterError("no_memory", "0.png", "out of memory")

        overlap = segment

    policy = RefiningPolicy(Scripted([FIRST]), REFINE, Faulty())
    with refused(SegmenterError, "no_memory", "row 0: turn 1: 0.png"):
        await policy.answer(items_in(tmp_path))


async def test_unknown_tokens_of_a_turn_make_the_sum_unknown(tmp_path: Path) -> None:
    class Plain(Scripted):
        async def answer(self, items: Any, seed: int = 0) -> Any:
            return list(map(str, await super().answer(items, seed)))

    (reply,) = await refining(Plain([FIRST, DONE])).answer(items_in(tmp_path))
    assert reply == FIRST and reply.tokens is None


async def test_a_server_gets_the_drawn_mask_as_a_picture(tmp_path: Path) -> None:
    chat, (item,) = ChatServer(Scripted([FIRST, DONE])), items_in(tmp_path)
    with serving(chat.app) as address:
        (reply,) = await refining(ServerPolicy(address, NAME, 48)).answer([item], seed=5)
    assert reply.turns == (FIRST, DONE) and reply.tokens == 20
    assert [body["seed"] for body in chat.asked] == [5, turn_seed(5, 1)]
    first, second = (body["messages"] for body in chat.asked)
    assert second[0] == first[0] and second[1] == {"role": "assistant", "content": [{"type": "text", "text": FIRST}]}
    data = second[2]["content"][0]["image_url"]["url"].removeprefix("data:image/png;base64,")
    mask = np.zeros(SIZE_WH[::-1], dtype=bool)
    mask[4:20, 4:20] = True
    expected = picture(item["extra_info"]["image"], mask, SIZE_WH)
    assert np.array_equal(Image.open(io.BytesIO(base64.b64decode(data))), expected)


@pytest.mark.slow
async def test_a_server_and_this_process_have_the_same_dialogues(warm_policy: Path, drawn: Path) -> None:
    local, items = LocalPolicy(Files(warm_policy), 48), questions(drawn)
    segmenter = inference_config().segmenter
    here = [(await RefiningPolicy(local, REFINE, segmenter).answer([item]))[0] for item in items]
    with serving(ChatServer(local).app) as address:
        served = await RefiningPolicy(ServerPolicy(address, NAME, 48), REFINE, segmenter).answer(items)
    assert [reply.turns for reply in served] == [reply.turns for reply in here]
    assert [reply.tokens for reply in served] == [reply.tokens for reply in here]
    assert any(len(reply.turns) > 1 for reply in here)


def test_a_recipe_with_refine_is_asked_by_dialogue(warm_policy: Path, small_sam: Path) -> None:
    overrides = [f"actor_rollout_ref.model.path={warm_policy}", f"samr1.segmenter.path={small_sam}"]
    config = InferenceConfig.of(compose_recipe("samr1_refine_tiny", overrides))
    assert config.refine == RefineConfig(max_turns=3, turn_tokens=48, look="tiny") and config.max_new_tokens == 48
    choice = PolicyChoice(config)
    assert choice.identity()["refine"] == {"max_turns": 3, "turn_tokens": 48, "look": "tiny"}
    policy = choice.load()
    assert isinstance(policy, RefiningPolicy) and policy.parallel == 1 and policy.processor is not None
    once = InferenceConfig.of(compose_recipe("samr1_refine_tiny", [*overrides, "samr1.refine=null"]))
    assert once.refine is None and once.max_new_tokens == 224
    assert isinstance(PolicyChoice(once).load(), LocalPolicy) and "refine" not in PolicyChoice(once).identity()


def test_another_template_is_another_identity(warm_policy: Path, tmp_path: Path) -> None:
    template = tmp_path / "look.jinja"
    config = replace(inference_config(), refine=REFINE.model_copy(update={"look": str(template)}))
    identities = []
    for text in ("Look at {{ sentence }}.", "Look again at {{ sentence }}."):
        template.write_text(text)
        identities.append(PolicyChoice(config, str(warm_policy)).identity())
    assert identities[0] != identities[1]
    missing = replace(config, refine=REFINE.model_copy(update={"look": "none"}))
    with refused(ConfigError, "unknown_template", "samr1.refine.look: found 'none'", "refine"):
        PolicyChoice(missing, str(warm_policy)).load()


async def test_lenient_parsing_reaches_the_looks(tmp_path: Path) -> None:
    bare = '{"bbox": ["8", "6", "32", "24"]}'
    config, (item,) = inference_config(), items_in(tmp_path)
    for lenient, turns in ((False, (bare,)), (True, (bare, DONE))):
        policy = RefiningPolicy(Scripted([bare, DONE]), REFINE, config.segmenter, config.caps, lenient)
        assert (await policy.answer([item]))[0].turns == turns
