"""Answers that earn what they should not: by the published rules, by the strict variants, and by our own rewards."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from samr1_verl.answers import Answer, parse_answer
from samr1_verl.config import ConfigError, reward_config
from tests.attack.mutate_answers import BOX, POINT, REWARDS, BoxClient, row
from tests.attack.mutations import run
from tests.errors import refused

EXTRA = {"image": "none.png", "sha256": "0" * 64, "policy_size": [24, 24], "frame": "absolute"}
RIGHT = [{"label": "shape", "bbox_2d": list(BOX), "point_2d": list(POINT)}]
WRONG = [{"label": "shape", "bbox_2d": [18, 18, 24, 24], "point_2d": [20, 20]}]
ONE = {"bbox": list(BOX), "points_1": list(POINT), "points_2": [8, 8]}
OTHER = {"bbox": [0, 0, 1, 1], "points_1": [0, 0], "points_2": [1, 1]}


def score(name: str, text: str, objects: int = 1, **more: Any) -> dict[str, float]:
    function, reward, _ = REWARDS[name]
    keywords = {"segmenter": BoxClient(), "reward": {**reward, **more}}
    return asyncio.run(function("shapes", text, row(objects), EXTRA, **keywords))


def response(answer: Any, reasoning: str = "The left one.") -> str:
    return f"<think>{reasoning}</think><answer>{answer if isinstance(answer, str) else json.dumps(answer)}</answer>"


@pytest.mark.parametrize("name", ["vision_reasoner", "star"])
def test_a_right_answer_inside_the_thinking(name: str) -> None:
    text = response(WRONG, f"<answer>{json.dumps(RIGHT)}</answer>")
    full = score(name, response(RIGHT))["score"]
    assert score(name, text)["score"] == full  # the published rule
    strict = score(name, text, strict=True)
    assert strict["score"] == 2 and strict["acc"] == 0  # think and non_repetition
    assert score(name, response(RIGHT), strict=True)["score"] == full


def test_braces_inside_the_thinking() -> None:
    text = response(OTHER, json.dumps(ONE))
    assert score("seg_zero", text)["score"] == 5  # the published rule
    strict = score("seg_zero", text, strict=True)
    assert (strict["think"], strict["format"], strict["box_iou"]) == (1, 1, 0)
    assert score("seg_zero", response(ONE), strict=True)["score"] == 5


def test_dr_segs_ranks_read_the_final_answer_alone() -> None:
    text = response(WRONG, f"<answer>{json.dumps(RIGHT)}</answer>")
    assert score("dr_seg", text)["metric/iou"] == 1
    assert score("dr_seg", text, strict=True)["metric/iou"] == 0


@pytest.mark.parametrize("name", ["seg_zero", "vision_reasoner", "star", "dr_seg"])
@pytest.mark.parametrize("reasoning", ["", " ", "\n\t"])
def test_a_blank_thinking_earns_think_by_the_published_rule_alone(name: str, reasoning: str) -> None:
    assert score(name, response(RIGHT, reasoning))["think"] == 1
    assert score(name, response(RIGHT, reasoning), strict=True)["think"] == 0


@pytest.mark.parametrize("name", ["samr1", "composed"])
@pytest.mark.parametrize("reasoning", ["", " ", "\n\t"])
def test_a_blank_thinking_earns_nothing_in_our_own_rewards(name: str, reasoning: str) -> None:
    assert score(name, response(ONE, reasoning))["think"] == 0
    assert score(name, response(ONE))["think"] == 1


@pytest.mark.parametrize("name", ["samr1", "composed"])
def test_our_own_rewards_are_strict_and_have_no_key_for_it(name: str) -> None:
    with refused(ConfigError, "key_not_read", "samr1.reward.strict: found True"):
        score(name, response(ONE), strict=True)


def test_strict_is_a_truth_value() -> None:
    with pytest.raises(ConfigError, match="strict"):
        reward_config({"strict": "yes"})


def test_equal_points_count_once() -> None:
    """Repeated points would outweigh a wrong box in the segmenter."""
    far = [[20, 20]] * 14 + [[20.2, 19.9]]
    answer = parse_answer(response({"bbox": list(BOX), "points": [list(POINT), *far]}))
    assert isinstance(answer, Answer)
    (target,) = answer.objects_policy
    assert target.points == ((10, 10), (20, 20)) and target.labels == (1, 1)


def test_a_point_may_be_inside_and_outside() -> None:
    answer = parse_answer(response({"bbox": list(BOX), "points": [[9, 9], [9, 9]], "labels": [1, 0]}))
    assert isinstance(answer, Answer) and answer.objects_policy[0].labels == (1, 0)


def test_equal_objects_count_once() -> None:
    once = {"bbox": list(BOX), "points": [list(POINT)]}
    again = {"bbox": [edge + 0.2 for edge in BOX], "points": [[10.1, 9.8]]}
    answer = parse_answer(response([once] * 15 + [again]))
    assert isinstance(answer, Answer) and len(answer.objects_policy) == 1
    repeated, single = score("samr1", response([once] * 16)), score("samr1", response([once]))
    assert repeated == single and single["score"] == 6


@pytest.mark.parametrize("name", ["samr1", "star", "composed"])
def test_without_an_object_the_empty_list_earns_most(name: str) -> None:
    invented, unreadable = (RIGHT if name == "star" else ONE), "nothing is there"
    refused = score(name, response([]), objects=0)
    assert refused["acc"] == 1 and refused["score"] == max(REWARDS[name][2], refused["score"])
    for other in (response(invented), response(unreadable), "", response("{}"), response("[[]]")):
        found = score(name, other, objects=0)
        assert found["score"] < refused["score"] and found["acc"] == 0, other


@pytest.mark.parametrize("name", ["samr1", "star", "composed"])
def test_with_an_object_the_empty_list_earns_its_thinking_alone(name: str) -> None:
    found = score(name, response([]))
    assert found["acc"] == 0 and found["score"] == (2 if name == "star" else 1)  # StAR's non_repetition


@pytest.mark.slow
def test_mutated_answers() -> None:
    report = run("tests.attack.mutate_answers", 400, seed=3)
    assert report.outcomes.total() == 400 and not report.escapes, report.escapes
