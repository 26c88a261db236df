"""Samples of dialogues: every turn with its mask; those of one turn, and those of earlier versions, have no turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from samr1_verl.evaluation.judge import judged
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.policies.base import Reply
from samr1_verl.scoring.recipe_reward import RecipeReward
from samr1_verl.scoring.sample import Reader, Sample, Turn, read_samples, write_samples
from samr1_verl.scoring.turns import Response, turns_in
from tests.evaluation.world import inference_config
from tests.policies.scripted import DONE, REFINE, UNUSABLE, box
from tests.policies.test_dialogue import items_in

FIRST, SECOND = box(4, 4, 20, 20), box(16, 12, 32, 24)  # the second is the row's object
PIXELS = {FIRST: 16 * 16, SECOND: 16 * 12, UNUSABLE: 0}


async def sample_of(folder: Path, response: str) -> Sample:
    config, (item,) = inference_config(), items_in(folder)
    return await Reader(config.segmenter, config.caps).sample(item, response, {"score": 1.0})


def pixels(sample: Sample | Turn, size: tuple[int, int]) -> int | None:
    return None if sample.mask is None else int(decode_rle(sample.mask, size).sum())


@pytest.mark.parametrize("turns", [(FIRST, SECOND, DONE), (FIRST, SECOND), (SECOND, DONE), (FIRST, UNUSABLE)])
async def test_every_turn_is_segmented_and_the_last_answer_counts(turns: tuple[str, ...], tmp_path: Path) -> None:
    sample = await sample_of(tmp_path, Reply(turns, 25))
    answers = [text for text in turns if text != DONE]
    assert sample.response == answers[-1] and sample.tokens == 25 and type(sample.response) is str
    assert pixels(sample, sample.size) == PIXELS[answers[-1]]
    assert tuple(turn.text for turn in sample.turns) == turns
    assert [pixels(turn, sample.size) for turn in sample.turns] == [PIXELS.get(text) for text in turns]
    assert [turn.reason for turn in sample.turns] == ["no_answer" if text == UNUSABLE else None for text in turns]
    assert [len(turn.shapes) for turn in sample.turns] == [int(text in (FIRST, SECOND)) for text in turns]
    assert (sample.reason, sample.shapes, sample.mask) == (
        *(getattr(sample.turns[len(answers) - 1], name) for name in ("reason", "shapes", "mask")),
    )


async def test_after_a_turn_it_is_the_sample_of_a_policy_that_stops_there(tmp_path: Path) -> None:
    sample = await sample_of(tmp_path, Response((FIRST, SECOND, DONE)))
    for turn, text in ((1, FIRST), (2, SECOND), (3, SECOND), (4, SECOND)):
        alone = await sample_of(tmp_path, text)
        assert sample.after(turn).model_copy(update={"turns": ()}) == alone
        assert len(sample.after(turn).turns) == min(turn, 3)
    assert sample.after(3) == sample
    assert judged(sample).scores["iou/lisa"] > 0.999 and judged(sample.after(1)).scores["iou/lisa"] < 0.2
    single = await sample_of(tmp_path, SECOND)
    assert single.after(1) is single


@pytest.mark.parametrize("only", [FIRST, UNUSABLE, DONE])
async def test_a_single_turn_is_stored_as_it_always_was(only: str, tmp_path: Path) -> None:
    plain, reply = [await sample_of(tmp_path, response) for response in (only, Reply(only, None))]
    assert plain == reply and plain.turns == () and plain.tokens is None and plain.response == only


async def test_files_keep_turns_and_those_of_earlier_versions_load(tmp_path: Path) -> None:
    sample = await sample_of(tmp_path, Reply((FIRST, SECOND, DONE), 25))
    write_samples([sample], tmp_path / "new.jsonl")
    assert list(read_samples(tmp_path / "new.jsonl")) == [sample]
    old = json.loads(sample.model_dump_json())
    del old["turns"], old["tokens"]
    (tmp_path / "old.jsonl").write_text(json.dumps(old))
    (loaded,) = read_samples(tmp_path / "old.jsonl")
    assert loaded == sample.model_copy(update={"turns": (), "tokens": None})


def test_a_response_reads_as_its_last_answer() -> None:
    assert Response((FIRST, SECOND, DONE)) == Response((FIRST, SECOND)) == Response(SECOND) == SECOND
    assert Response((DONE,)) == DONE, "it keeps no mask"
    assert turns_in(Response((FIRST, DONE))) == (FIRST, DONE) and turns_in(FIRST) == turns_in(Response(FIRST)) == (
        FIRST,
    )
    reply = Reply((FIRST, DONE), 7)
    assert (reply, reply.tokens, reply.ended, turns_in(reply)) == (FIRST, 7, True, (FIRST, DONE))


async def test_a_reward_of_dialogues_gets_all_turns(tmp_path: Path) -> None:
    config, (item,) = inference_config(), items_in(tmp_path)
    arguments = {"segmenter": config.segmenter, "refine": REFINE}
    reward = RecipeReward({"path": "pkg://reward_fns.refine", "name": "compute_score", "reward_kwargs": arguments})
    whole, last = [await reward.scores(item, response) for response in (Response((FIRST, SECOND, DONE)), SECOND)]
    assert (whole["turns"], whole["done"], whole["mends"]) == (3, 1, 1)
    assert whole["acc/turn_1"] < 0.2 and whole["acc/turn_3"] == whole["acc"] == last["acc"] == 1
    assert (last["turns"], last["done"], last["gain"]) == (1, 0, 0)
    assert "turns" not in item["extra_info"]
    plain = RecipeReward(config.reward)
    assert await plain.scores(item, Response((FIRST, SECOND, DONE))) == await plain.scores(item, SECOND)
