"""VisionReasoner's reward: every term worked by hand, the matching, and its published quirks."""

from __future__ import annotations

import pytest

from reward_fns.vision_reasoner import compute_score
from samr1_verl.rows.ground_truth import RowError
from tests.errors import refused
from tests.reward_fns.scoring import EXTRA, objects, score, think, truth

A, B, C = [100, 100, 199, 199], [400, 100, 499, 199], [100, 500, 299, 699]  # far apart
OWN = ("think", "format", "accuracy", "non_repetition")


def terms(answer, row, **kwargs) -> tuple[float, ...]:
    result = score(compute_score, think(answer), row, **kwargs)
    assert result["score"] == pytest.approx(sum(result[name] for name in OWN))
    return tuple(result[name] for name in OWN)


def test_a_perfect_answer_scores_7():
    assert terms(objects(A, B, C), truth([A, B, C])) == (1, 2, 3, 1)
    assert terms(objects(C, A, B), truth([A, B, C])) == (1, 2, 3, 1)  # in any order


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (objects(A), 3 / 2),  # one of two: 3 / max(1, 2)
        (objects(A, B, C), 6 / 3),  # one too many: 6 / max(3, 2)
        (objects(A, A), 3 / 2),  # the same object twice matches once
        (objects(C, C), 0),
    ],
)
def test_accuracy_is_divided_by_the_larger_number_of_objects(answer, expected):
    assert terms(answer, truth([A, B]))[2] == expected


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        # A is 100 x 100 inclusive pixels, its point (149.5, 149.5)
        ({"bbox_2d": A, "point_2d": [149.5, 179]}, 3),  # 29.5 away
        ({"bbox_2d": A, "point_2d": [149.5, 179.5]}, 2),  # 30 is not below 30
        ({"bbox_2d": A, "point_2d": [149.5, 119]}, 2),  # 30.5
        (
            {"bbox_2d": [100, 100, 149, 199], "point_2d": [149, 149.5]},
            1,
        ),  # IoU 0.5, L1 50 / 4; point on the border, 0.5
        ({"bbox_2d": [100, 100, 150, 199], "point_2d": [151, 149.5]}, 1),  # IoU 0.51; point outside its own box
        ({"bbox_2d": [139, 100, 199, 199], "point_2d": [150, 150]}, 3),  # IoU 61 / 100, L1 39 / 4 = 9.75
        ({"bbox_2d": [140, 100, 199, 199], "point_2d": [150, 150]}, 2),  # IoU 0.6, L1 10
    ],
)
def test_a_pair_earns_one_for_iou_distance_and_point(one, expected):
    assert terms([one], truth([A]))[2] == expected


def test_the_matching_maximises_the_sum():
    # One answer fits A in three ways; the other, over the whole image, has its point on B alone: 3 + 1 over 2 objects.
    wide = {"bbox_2d": [0, 0, 839, 839], "point_2d": [449.5, 149.5]}
    assert terms([*objects(A), wide], truth([A, B]))[2] == (3 + 1) / 2
    assert terms([wide, *objects(A)], truth([A, B]))[2] == (3 + 1) / 2


@pytest.mark.parametrize(
    ("answer", "form", "accuracy"),
    [
        ([{"bbox_2d": A}], 1, 0),  # no point: half the format, and accuracy ends at 0
        ([{"point_2d": [149.5, 149.5]}], 1, 0),
        ([*objects(A), {"bbox_2d": [1, 2, 3]}], 2 / 2, 0),  # (2 + 0) / 2
        ([*objects(A), None], 2 / 2, 0),  # summed before the error
        ([None, *objects(A)], 0, 0),  # the error comes first
        (["a word", *objects(A)], 2 / 2, 0),  # `in` is no error on a string
        (objects(A)[0], 0, 0),  # an object is no list: its keys are looked through
        ([], 0, 0),
        ("7", 0, 0),
        ("no json", 0, 0),
        (
            [{"bbox_2d": ["100", "100", "199", "199"], "point_2d": ["150", "150"]}],
            2,
            0,
        ),  # types are unchecked, not read
        ([{"bbox_2d": [True, False, True, True], "point_2d": [True, True]}], 2, 0),
        ([{"bbox_2d": [*A], "point_2d": [[149.5], [149.5]]}], 2, 0),
    ],
)
def test_format_is_a_mean_and_accuracy_ends_at_0_on_any_error(answer, form, accuracy):
    assert terms(answer, truth([A])) == (1, form, accuracy, 1)


def test_the_first_answer_counts():
    right, wrong = think(objects(A)), think(objects(B))
    assert score(compute_score, right + wrong, truth([A]))["accuracy"] == 3
    assert score(compute_score, wrong + right, truth([A]))["accuracy"] == 0
    assert score(compute_score, wrong + right, truth([A]))["answer/many_answers"] == 1


def test_at_most_120_objects_count_on_either_side():
    boxes = [[10 * (i % 40), 10 * (i // 40), 10 * (i % 40) + 8, 10 * (i // 40) + 8] for i in range(130)]
    result = score(compute_score, think(objects(*boxes)), truth(boxes))
    assert (result["accuracy"], result["answer/many_objects"]) == (3, 1)
    assert score(compute_score, think(objects(*boxes[120:])), truth(boxes))["accuracy"] < 1


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("One. Two. Three", 1),
        ("One. One. Two", 1),  # one repeat is allowed
        ("One. One. One", 0),  # the second one is not
        ("One. Two. One. Two", 0),
        ("One . One. . .", 1),  # trimmed, empty ones dropped
    ],
)
def test_two_repeats_lose_the_non_repetition(reasoning, expected):
    text = f"x.{reasoning}. <answer>[]</answer>"
    assert score(compute_score, text, truth([A]))["non_repetition"] == expected


def test_no_target_is_0_by_the_published_rule():
    assert terms([], truth([])) == (1, 0, 0, 1)
    assert terms(objects(A), truth([])) == (1, 2, 0, 1)
    result = score(compute_score, think([]), truth([]), reward={"terms": {"no_target": 3}})
    assert (result["no_target"], result["score"]) == (1, 1 + 0 + 0 + 1 + 3)


def test_distances_are_in_pixels_of_the_policys_image():
    # 0 to 1000 over 500 x 250 pixels: 29 pixels are 58 units of x
    extra = EXTRA | {"frame": "thousand", "policy_size": [500, 250]}
    row = truth([[0, 0, 839, 839]], [[[420, 420]]])  # the image's centre: (500, 500) of 1000
    box = [0, 0, 1000 * 839 / 840, 1000 * 839 / 840]
    assert terms([{"bbox_2d": box, "point_2d": [558, 500]}], row, extra=extra)[2] == 3  # 29 pixels
    assert terms([{"bbox_2d": box, "point_2d": [561, 500]}], row, extra=extra)[2] == 2  # 30.5 pixels


def test_acc_is_the_matched_iou_over_the_larger_number():
    assert score(compute_score, think(objects(A)), truth([A, B]))["acc"] == 0.5


def test_a_row_without_points_is_an_error_for_every_answer():
    for text in ("", think(objects(A))):
        with refused(RowError, "points_missing", "ground_truth.points: ", "[] points", "1 boxes"):
            score(compute_score, text, truth([A], []))
