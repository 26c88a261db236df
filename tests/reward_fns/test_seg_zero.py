"""Seg-Zero's reward: every term worked by hand at its threshold, and its published quirks."""

from __future__ import annotations

import json

import pytest

from reward_fns.seg_zero import compute_score, first_object
from samr1_verl.config import ConfigError
from samr1_verl.rows.ground_truth import RowError
from tests.errors import refused
from tests.reward_fns.scoring import EXTRA, objects, score, seg_zero_answer, think, truth

BOX, POINTS = [100, 100, 199, 199], [[120, 120], [180, 180]]  # 100 x 100 inclusive pixels
ROW = truth([BOX], [POINTS])
TERMS = ("think", "format", "box_iou", "box_l1", "points")


def terms(answer, row=ROW, **kwargs) -> tuple[float, ...]:
    result = score(compute_score, think(answer), row, **kwargs)
    assert result["score"] == sum(result[name] for name in TERMS)
    return tuple(result[name] for name in TERMS)


def test_a_perfect_answer_scores_5():
    assert terms(seg_zero_answer(BOX, *POINTS)) == (1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        (150, 1),  # 51 of 100 columns: 0.51
        (149.5, 1),  # 50.5 of 100: 0.505. Without the inclusive pixel 49.5 / 99 = 0.5 would not be above
        (149, 0),  # 50 of 100: 0.5 is not above 0.5
    ],
)
def test_box_iou_counts_inclusive_pixels_and_is_strict(right, expected):
    assert terms(seg_zero_answer([100, 100, right, 199], *POINTS))[2] == expected


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([139, 100, 199, 199], 1),  # 39 / 4 = 9.75
        ([140, 100, 199, 199], 0),  # 40 / 4 = 10 is not below 10
        ([109, 109, 209, 209], 1),  # (9 + 9 + 10 + 10) / 4 = 9.5
        ([110, 110, 209, 209], 0),  # 10
    ],
)
def test_box_l1_is_the_mean_of_four_and_strict(box, expected):
    assert terms(seg_zero_answer(box, *POINTS))[3] == expected


@pytest.mark.parametrize(
    ("box", "first", "second", "expected"),
    [
        (BOX, [180, 180], [120, 120], 1),  # crossed: 0
        (BOX, [120.9, 120.9], [180.9, 180.9], 1),  # cut to integers: 0
        (BOX, [100, 199], [199, 100], 1),  # on the borders; both pairings sqrt(20² + 79²) = 81.5
        (BOX, [100.5, 100], [199, 199.9], 1),  # 199.9 is cut to 199, on the border
        (BOX, [99, 120], [180, 180], 0),  # left of the box
        ([100, 20, 199, 199], [120, 21], [180, 81], 1),  # 99 each, 198 / 2 = 99
        ([100, 20, 199, 199], [120, 20], [180, 80], 0),  # 100 each, 200 / 2 = 100 is not below
        ([100, 0, 199, 199], [120, 0], [180, 180], 1),  # (120 + 0) / 2 = 60: the mean counts
    ],
)
def test_points_are_cut_paired_and_must_lie_in_the_predicted_box(box, first, second, expected):
    assert terms(seg_zero_answer(box, first, second))[4] == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (seg_zero_answer(BOX, "x", [180, 180]), (1, 0, 1, 1, 0)),  # a broken point leaves the box alone
        (seg_zero_answer([100, 100, 199], *POINTS), (1, 0, 0, 0, 0)),  # a broken box takes the points along
        ({"bbox": BOX}, (1, 0, 1, 1, 0)),
        ({"points_1": POINTS[0], "points_2": POINTS[1]}, (1, 0, 0, 0, 0)),
        (seg_zero_answer(["100", "100", "199", "199"], *POINTS), (1, 1, 0, 0, 0)),  # element types are unchecked
        (seg_zero_answer(BOX, ["120", "120"], ["180", "180"]), (1, 1, 1, 1, 1)),  # int() reads strings of digits
        (seg_zero_answer(BOX, ["１２０", "１２０"], POINTS[1]), (1, 1, 1, 1, 1)),  # noqa: RUF001
        (seg_zero_answer(BOX, ["1e2", "120"], POINTS[1]), (1, 1, 1, 1, 0)),  # and nothing else
        ([seg_zero_answer(BOX, *POINTS)], (1, 1, 1, 1, 1)),  # the first braces, inside whatever list
        (objects(BOX), (1, 0, 0, 0, 0)),  # other keys
        ({"a": {"b": 1}, **seg_zero_answer(BOX, *POINTS)}, (1, 0, 0, 0, 0)),  # '{"a": {"b": 1}' is no JSON
    ],
)
def test_each_term_fails_alone(answer, expected):
    assert terms(answer) == expected


def test_the_first_braces_anywhere_in_the_response_count():
    right = json.dumps(seg_zero_answer(BOX, *POINTS))
    assert score(compute_score, think("", reasoning=right), ROW)["score"] == 5
    assert score(compute_score, think(right, reasoning="the set {a}"), ROW)["score"] == 1
    assert score(compute_score, think(right, reasoning="the set {}"), ROW)["score"] == 5  # empty braces are none
    assert score(compute_score, right, ROW)["score"] == 4  # no tags: only the thinking format is lost


@pytest.mark.parametrize("text", ["", "}", "{", "}{", "{}{", "{}" * 50])
def test_no_braces_are_no_object(text):
    with pytest.raises(ValueError):
        first_object(text)


def test_acc_is_the_iou_of_the_boxes():
    assert score(compute_score, think(seg_zero_answer([100, 100, 124, 199], *POINTS)), ROW)["acc"] == 0.25
    assert score(compute_score, think(seg_zero_answer([199, 100, 100, 199], *POINTS)), ROW)["acc"] == 0


def test_the_row_is_brought_into_the_policys_pixels():
    # 200 x 100 pixels shown at 840 x 840: x times 4.2, y times 8.4
    row = truth([[20, 10, 120, 60]], [[[40, 20], [100, 50]]], size=[100, 200])
    assert terms(seg_zero_answer([84, 84, 504, 504], [168, 168], [420, 420]), row) == (1, 1, 1, 1, 1)
    # 0 to 1000 over a policy image of 500 x 250, so that 10 pixels are 20 units of x and 40 of y
    thousand = EXTRA | {"frame": "thousand", "policy_size": [500, 250]}
    box = [100, 100, 600, 600]  # 50, 25, 300, 150 in pixels
    near, far = [100 + 78, *box[1:]], [100 + 80, *box[1:]]  # 39 / 4 and 40 / 4 pixels off
    points = [200, 200], [500, 500]
    assert terms(seg_zero_answer(near, *points), row, extra=thousand)[3] == 1
    assert terms(seg_zero_answer(far, *points), row, extra=thousand)[3] == 0


@pytest.mark.parametrize(
    ("row", "code", "names"),
    [
        (truth([]), "not_one_box", ["ground_truth.boxes", "0 boxes", "expected 1:"]),
        (truth([BOX, BOX]), "not_one_box", ["ground_truth.boxes", "2 boxes", "expected 1:", "+recipe=vision_reasoner"]),
        (truth([BOX], [[[120, 120]]]), "points_missing", ["ground_truth.points", "[1] points", "at least 2"]),
        (truth([BOX], []), "points_missing", ["ground_truth.points", "[] points"]),
    ],
)
@pytest.mark.parametrize("text", ["", think(seg_zero_answer(BOX, *POINTS))])
def test_a_row_that_the_rule_cannot_judge_is_an_error_for_every_answer(row, code, names, text):
    with refused(RowError, code, *names):
        score(compute_score, text, row)


def test_weights_and_metrics():
    text = think(seg_zero_answer(BOX, *POINTS), reasoning="word " * 106)
    # length: 106 words are 10 beyond 96, 1 - 10 / 500 = 0.98
    result = score(
        compute_score, text, ROW, reward={"terms": {"points": 3, "think": 0, "length": 0.5, "point_count": 0}}
    )
    assert result["score"] == pytest.approx(0 + 1 + 1 + 1 + 3 + 0.49) and result["length"] == pytest.approx(0.98)
    assert result["point_count"] == 1 and result["points"] == 1
    with refused(ConfigError, "no_such_term", "samr1.reward.terms.lenght: ", "think, format"):
        score(compute_score, text, ROW, reward={"terms": {"lenght": 1}})
    with refused(ConfigError, "no_segmenter", "reward_kwargs.segmenter", "term s_measure"):
        score(compute_score, text, ROW, reward={"terms": {"s_measure": 0}})
    with refused(ConfigError, "unknown_argument", "reward_kwargs.tiers"):
        score(compute_score, text, ROW, tiers=1)
