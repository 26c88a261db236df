"""What degenerate answers earn from each reward, and why: no exception, and without an object the format at most.

The row means one object of 100 x 100 pixels in the upper left of an image of 840 x 840; no degenerate answer is near it
unless its name says so.
"""

from __future__ import annotations

import json
import time

import pytest

from reward_fns import composed, dr_seg, samr1, seg_zero, star, vision_reasoner
from reward_fns.terms import TERMS
from tests.reward_fns.scoring import SEGMENTER, image_extra, score, think, truth_with_masks
from tests.test_answers import DEGENERATE as UNPARSABLE

A = (40, 40, 140, 140)
ROW = truth_with_masks(A)
FAR, FAR_POINT = [600, 600, 700, 700], [650, 650]
MASKS = {"segmenter": SEGMENTER}
REWARDS = {
    "samr1": (samr1, MASKS),
    "seg_zero": (seg_zero, {}),
    "vision_reasoner": (vision_reasoner, {}),
    "star": (star, MASKS),
    "dr_seg": (dr_seg, {"reward": {"window": {"path": None, "step": 10_000}}}),
    "composed": (composed, {**MASKS, "reward": {"terms": dict.fromkeys(TERMS, 1.0)}}),
}  # fmt: skip


def both(box, *points) -> dict:
    """One object in every dialect at once: Seg-Zero's keys, which SAM-R1 shares, where `both` is not in a list."""
    first = points[0] if points else FAR_POINT
    return {"bbox": box, "points_1": first, "points_2": points[-1] if points else FAR_POINT}


def listed(box, point=FAR_POINT, count: int = 1) -> list[dict]:
    return [{"label": "shape", "bbox_2d": box, "point_2d": point}] * count


NESTED = "[" * 2_000 + "]" * 2_000
# name: response, and the scores in the order of REWARDS, composed left out (its terms are tested one by one).
CORPUS = {
    "nothing at all": ("", (0, 0, 1, 1, 1)),  # an empty text repeats nothing
    "empty answer": (think(""), (1, 1, 2, 2, 2)),  # thinks, and repeats nothing
    "empty list": (think([]), (1, 1, 2, 2, 2)),
    "empty object": (think({}), (1, 1, 2, 2, 2)),
    "a far object, Seg-Zero's keys": (think(both(FAR)), (2, 2, 2, 2, 2)),
    # Lists have 2 points of format; 4/3 + 2/3 in StAR; the number of objects is right: 1 in StAR and Dr. Seg
    "a far object, listed": (think(listed(FAR)), (2, 1, 4, 5, 5)),
    "whole-image box, far points": (think(both([0, 0, 840, 840])), (2, 2, 2, 2, 2)),  # IoU 0.014
    "whole-image box, listed": (think(listed([0, 0, 840, 840])), (2, 1, 4, 5, 6)),  # Dr. Seg ranks any IoU above 0
    "inverted box": (think(both([700, 700, 600, 600])), (1, 2, 2, 2, 2)),
    "inverted box, listed": (think(listed([700, 700, 600, 600])), (1, 1, 4, 5, 5)),
    "zero-area box": (think(both([600, 600, 600, 600])), (1, 2, 2, 2, 2)),
    "zero-area box, listed": (think(listed([600, 600, 600, 600])), (1, 1, 4, 5, 5)),
    "points outside": (think(both(FAR, [-5, -5], [9000, 1])), (1, 2, 2, 2, 2)),
    "thousand points": (think({"bbox": FAR, "points": [FAR_POINT] * 1000}), (1, 1, 2, 2, 2)),
    # One of the twenty can match, and none is right: no more than once; the count is wrong (StAR), 1/20 (Dr. Seg)
    "the same far object twenty times": (think(listed(FAR, count=20)), (1, 1, 4, 4, 5)),
    # The published thinking format lets anything stand between the first tag and the last
    "two answers": (think(both(FAR)) + think(both(FAR)), (1, 2, 2, 2, 2)),
    "two listed answers": (think(listed(FAR)) + think(listed(FAR)), (1, 1, 4, 5, 5)),
    "nested tags": (think(f"<answer>{json.dumps(both(FAR))}</answer>"), (1, 2, 2, 2, 2)),
    "tags inside JSON strings": (think(json.dumps({"a": "</answer><answer>", **both(FAR)})), (1, 2, 2, 2, 2)),
    "numbers as strings": (think(both(["600", "600", "700", "700"], ["650", "650"])), (1, 2, 2, 2, 2)),
    # Dr. Seg reads them, and counts one object of one
    "numbers as strings, listed": (think(listed(["600"] * 4, ["650"] * 2)), (1, 1, 4, 4, 5)),
    "1e308": (think(both([-1e308, -1e308, 1e308, 1e308])), (2, 2, 2, 2, 2)),  # clipped to the whole image
    "1e308, listed": (think(listed([-1e308, -1e308, 1e308, 1e308])), (2, 1, 4, 5, 5)),
    "NaN": (think('{"bbox": [NaN, NaN, NaN, NaN], "points_1": [NaN, 1], "points_2": [1, NaN]}'), (1, 2, 2, 2, 2)),
    "NaN, listed": (think('[{"label": "a", "bbox_2d": [NaN, 1, 2, 3], "point_2d": [NaN, 1]}]'), (1, 1, 4, 5, 5)),
    "Infinity": (think('[{"bbox_2d": [-Infinity, 1, Infinity, 3], "point_2d": [650, 650]}]'), (1, 1, 4, 13 / 3, 5)),
    "minus zero": (think('{"bbox": [-0, -0.0, 10, 10], "points_1": [-0, 0], "points_2": [0, -0.0]}'), (2, 2, 2, 2, 2)),
    "unicode digits": (think('{"bbox": [６００, 600, 700, 700], "points_1": [1, 1]}'), (1, 1, 2, 2, 2)),  # noqa: RUF001
    "100 kB of brackets": (think("[{" * 50_000), (1, 1, 2, 2, 2)),
    "deep nesting": (think(NESTED), (1, 1, 2, 2, 2)),
    "deep nesting in a box": (think('{"bbox": ' + NESTED + "}"), (1, 1, 2, 2, 2)),
    "null bytes": (think(json.dumps(both(FAR)).replace("600", "60\x000")), (1, 1, 2, 2, 2)),
    "null bytes around": (f"\x00{think(both(FAR))}", (1, 1, 1, 1, 1)),
    "repeated reasoning": (think([], reasoning="So. So. So. So."), (1, 1, 1, 1, 1)),
    "an integer of 100 kB": (think('{"bbox": [' + "9" * 100_000 + ', 1, 2, 3], "points_1": [1, 1]}'), (1, 1, 2, 2, 2)),
}  # fmt: skip


@pytest.fixture
def scores(fake, tmp_path, monkeypatch):
    """All rewards of a response, by name."""
    monkeypatch.setattr(dr_seg, "_windows", {})
    extra = image_extra(tmp_path)

    def scores(text, row=ROW) -> dict[str, dict[str, float]]:
        return {name: score(module.compute_score, text, row, extra, **kw) for name, (module, kw) in REWARDS.items()}

    return scores


# Terms that an answer can earn without a correct object.
FORMAT_TERMS = {
    "samr1": ("think", "format"),
    "seg_zero": ("think", "format"),
    "vision_reasoner": ("think", "format", "non_repetition"),
    "star": ("think", "format", "count", "non_repetition"),
    "dr_seg": ("think", "format", "look", "count", "non_repetition"),
    "composed": ("think", "format", "point_count", "length", "non_repetition"),
}


def format_score(name: str, result: dict[str, float]) -> float:
    """The part of a score that needs no correct object; every weight is 1."""
    return sum(result[term] for term in FORMAT_TERMS[name])


@pytest.mark.parametrize("name", CORPUS)
def test_what_each_reward_gives_a_degenerate_answer(scores, name):
    text, expected = CORPUS[name]
    found = scores(text)
    assert [found[reward]["score"] for reward in list(REWARDS)[:5]] == pytest.approx(expected)
    assert max(found["composed"][term] for term in ("mask_iou", "s_measure", "boundary_iou", "no_target")) < 0.2


@pytest.mark.parametrize("name", [name for name in CORPUS if "whole-image" not in name])
def test_nothing_is_earned_beyond_the_format_without_a_correct_object(scores, name):
    for reward, result in scores(CORPUS[name][0]).items():
        if (reward, name) in {("samr1", "1e308"), ("composed", "1e308"), ("composed", "1e308, listed")}:
            continue  # clipped to the whole image, whose IoU is 0.014
        assert result["score"] == pytest.approx(format_score(reward, result)), (reward, result)


@pytest.mark.parametrize("inside", UNPARSABLE)
def test_answers_that_the_parser_refuses_earn_their_format_at_most(scores, inside):
    for reward, result in scores(think(UNPARSABLE[inside][0]), truth_with_masks((600, 600, 700, 700))).items():
        assert result["score"] == pytest.approx(format_score(reward, result)), reward


def test_a_right_point_in_a_whole_image_box_earns_the_published_point(scores):
    """The published rules of boxes and points credit it; a mask does not."""
    found = scores(think(listed([0, 0, 840, 840], [90, 90])))
    assert (found["vision_reasoner"]["accuracy"], found["star"]["point"], found["star"]["mask"]) == (1, 1, 0)
    found = scores(think(both([0, 0, 840, 840], [90, 90], [90, 90])))
    assert (found["seg_zero"]["points"], found["samr1"]["seg"]) == (1, 0)


def test_the_true_object_twenty_times_earns_a_twentieth(scores):
    found = scores(think(listed(list(A), [90, 90], count=20)))
    assert found["vision_reasoner"]["accuracy"] == pytest.approx(3 / 20)
    assert found["star"]["mask"] == pytest.approx(5 / 20)


UNITS = ["[", "{", "{}", "[]", "<answer>", "</answer>", "<think>", "</think>", "<look>", ". a", '"', "\\", "1", "é"]


@pytest.mark.parametrize("unit", UNITS)
def test_two_megabytes_of_anything_are_scored_with_linear_work(unit):
    part = unit * (1_000_000 // len(unit))
    text = f"<think>{part}</think><answer>{part}</answer>"
    extra = {"image": "/nowhere.png", "sha256": "0" * 64, "policy_size": [840, 840], "frame": "absolute"}
    start = time.process_time()
    for module, kwargs in (REWARDS[name] for name in ("seg_zero", "vision_reasoner", "dr_seg")):
        score(module.compute_score, text, ROW, extra, **kwargs)
    assert time.process_time() - start < 80, "0.7 s at most; quadratic work takes minutes on any machine"
