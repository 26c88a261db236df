"""The composable terms, each worked by hand, and rewards made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reward_fns import composed, samr1
from reward_fns.terms import TERMS, boundary_iou, mask_iou, non_repetition, s_measure
from samr1_verl.answers import Answer
from samr1_verl.config import ConfigError
from samr1_verl.rows.ground_truth import GroundTruth, View
from samr1_verl.scoring.rollout import Masks, Rollout
from tests.errors import refused
from tests.reward_fns.scoring import (
    SEGMENTER,
    image_extra,
    rectangle,
    score,
    seg_zero_answer,
    think,
    truth_with_masks,
)

A = (100, 100, 200, 200)
ROW = truth_with_masks(A)


def with_masks(predicted: np.ndarray, target: np.ndarray) -> Rollout:
    size = (target.shape[0], target.shape[1])
    view = View(image=None, sha256=None, policy_size=(size[1], size[0]), frame="absolute")
    return Rollout("", GroundTruth(size=size, masks=()), view, "row", Answer(()), Masks(predicted, target))


def points(count: int) -> dict:
    return {"bbox": [100, 100, 200, 200], "points": [[150 + number, 150] for number in range(count)]}


@pytest.fixture
def compose(fake, tmp_path):
    """Scores a response with terms alone, against the mask A."""
    extra = image_extra(tmp_path)

    def compose(answer, terms, row=ROW):
        text = answer if isinstance(answer, str) else think(answer)
        return score(composed.compute_score, text, row, extra, reward={"terms": terms}, segmenter=SEGMENTER)

    return compose


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (points(2), 1),
        (points(1), math.exp(-1 / 8)),
        (points(4), math.exp(-4 / 8)),
        (points(16), math.exp(-196 / 8)),
        ([points(2), points(1)], (1 + math.exp(-1 / 8)) / 2),  # the mean over objects
        (points(17), 0),  # unusable
    ],
)
def test_point_count_is_a_bell_around_two(compose, answer, expected):
    assert compose(answer, {"point_count": 1})["score"] == pytest.approx(expected)


@pytest.mark.parametrize(("words", "expected"), [(0, 1), (96, 1), (97, 0.998), (346, 0.5), (596, 0), (5000, 0)])
def test_length_falls_by_a_500th_a_word_beyond_96(compose, words, expected):
    text = think(points(2), reasoning="word " * words)
    assert compose(text, {"length": 1})["score"] == pytest.approx(expected)


def test_length_wants_the_format():
    row = with_masks(rectangle(0, 0, 1, 1, (4, 4)), rectangle(0, 0, 1, 1, (4, 4)))
    assert TERMS["length"].function(row) == 0
    assert non_repetition(row) == 1


def test_no_target_is_earned_by_the_empty_list_alone_and_only_where_it_is_true(compose):
    terms = {"no_target": 1, "mask_iou": 1}
    nothing = truth_with_masks()
    assert compose([], terms, nothing)["score"] == 2
    assert compose("[ ]", terms, nothing)["score"] == 0  # no <answer> around it
    assert compose(think("[ ]"), terms, nothing)["score"] == 2
    for other in ("", "{}", "null", "[[]]", points(2)):
        assert compose(think(other) if isinstance(other, str) else other, terms, nothing)["score"] == 0, other
    assert compose([], terms)["score"] == 0  # the row means A


def test_mask_iou():
    small, large = rectangle(0, 0, 2, 2, (4, 4)), rectangle(0, 0, 4, 2, (4, 4))
    assert mask_iou(with_masks(small, large)) == 4 / 8
    assert mask_iou(with_masks(~large, large)) == 0


def test_boundary_iou_compares_rims():
    # 50 x 50, so the rim is round(0.02 · sqrt(5000)) = round(1.41) = 1 pixel wide.
    # 10 x 10 has 36 rim pixels, 9 x 10 has 34.
    size = (50, 50)
    target, predicted = rectangle(10, 10, 20, 20, size), rectangle(10, 10, 19, 20, size)
    # Shared: the left column of 10, the top and bottom rows without it, 8 more each: 10 + 8 + 8 = 26.
    assert boundary_iou(with_masks(predicted, target)) == 26 / (36 + 34 - 26)
    # The same difference inside is none: both have the same rim.
    hollow = target & ~rectangle(12, 12, 18, 18, size)
    assert boundary_iou(with_masks(target, target)) == 1
    assert boundary_iou(with_masks(hollow, target)) < 1  # a hole has a rim of its own
    # The image's border bounds a mask too.
    corner = rectangle(0, 0, 10, 10, size)
    assert boundary_iou(with_masks(corner & ~rectangle(1, 1, 9, 9, size), corner)) == 1


def test_s_measure_worked_by_hand():
    # 4 x 4; the target is the left half, 8 pixels; the prediction its upper half, 4 pixels.
    size = (4, 4)
    target, predicted = rectangle(0, 0, 2, 4, size), rectangle(0, 0, 2, 2, size)
    # S_o: inside the target x = 1/2, s = sqrt(1/4 · 8/7); outside 1 - 0 = 1, s = 0.
    inside = 2 * 0.5 / (0.25 + 1 + math.sqrt(0.25 * 8 / 7))
    s_o = 0.5 * inside + 0.5 * (2 * 1 / (1 + 1 + 0))
    # S_r: the centroid is row 1.5 and column 0.5, rounded to even 2 and 0, plus 1: four regions cut at row 3, column 1.
    # Left column, above (3 x 1): the target is constant, so no covariance, and the prediction is not: SSIM 0.
    # Left column, below (1 x 1): both are constant, which the measure counts as 1.
    # Right three columns: above (3 x 3) x = 2/9, y = 3/9, n = 9; covariance (2/9 - 2/9·3/9)·9/8 = 1/6.
    x, y = 2 / 9, 3 / 9
    variances = (x * (1 - x) + y * (1 - y)) * 9 / 8
    above = 4 * x * y * (1 / 6) / ((x**2 + y**2) * variances)
    # Below (1 x 3) the prediction is empty, the target 1/3: no covariance, variances not 0: SSIM 0.
    s_r = 9 / 16 * above + 1 / 16 * 1
    assert s_measure(with_masks(predicted, target)) == pytest.approx(0.5 * s_o + 0.5 * s_r)


def test_s_measure_at_its_ends():
    size = (40, 60)
    target = rectangle(10, 10, 30, 30, size)
    assert s_measure(with_masks(target, target)) == pytest.approx(1)
    assert s_measure(with_masks(~target, target)) == 0
    assert s_measure(with_masks(rectangle(35, 10, 50, 30, size), target)) == 0  # the paper's gives about a half
    everywhere = np.ones(size, dtype=bool)
    assert s_measure(with_masks(target, everywhere)) == pytest.approx(400 / 2400)
    near, far = rectangle(12, 12, 32, 32, size), rectangle(20, 20, 40, 40, size)
    assert s_measure(with_masks(near, target)) > s_measure(with_masks(far, target)) > 0


def test_terms_that_compare_masks_are_0_for_an_unusable_answer(compose):
    names = [name for name, term in TERMS.items() if term.compares_masks]
    result = compose("no answer", dict.fromkeys(names, 1.0), truth_with_masks())
    assert result["score"] == 0 and set(names) <= result.keys()


def test_published_compositions(compose):
    # The answer's mask is its box, 80 of 100 columns: IoU 0.8.
    answer = seg_zero_answer([100, 100, 180, 200], [110, 110], [150, 150])
    socio = compose(answer, {"mask_iou": 1, "point_count": 1})
    assert socio["score"] == pytest.approx(1.8) and socio["acc"] == 0.8
    seg_r1 = compose(answer, {"mask_iou": 0.7, "s_measure": 0.3})
    assert seg_r1["score"] == pytest.approx(0.7 * 0.8 + 0.3 * seg_r1["s_measure"])


def test_terms_add_to_a_published_reward_and_zero_makes_a_metric(fake, tmp_path):
    answer = think(seg_zero_answer([100, 100, 180, 200], [110, 110], [150, 150]))
    kwargs = {"segmenter": SEGMENTER}
    plain = score(samr1.compute_score, answer, truth_with_masks(A), image_extra(tmp_path), **kwargs)
    terms = {"mask_iou": 0.5, "boundary_iou": 0, "format": 2}
    result = score(
        samr1.compute_score, answer, truth_with_masks(A), image_extra(tmp_path), reward={"terms": terms}, **kwargs
    )
    assert (plain["score"], result["score"]) == (5, 5 + 0.5 * 0.8 + 1)  # 0.8 is tier 3
    assert 0 < result["boundary_iou"] < 1 and result.keys() - plain.keys() == {"mask_iou", "boundary_iou"}


@pytest.mark.parametrize("weight", [True, "1", math.nan, math.inf, [1]])
def test_a_weight_is_a_finite_number(weight):
    with refused(ConfigError, "invalid_value", "samr1.reward.terms.think: ", f"found {weight!r}"):
        composed.ARGUMENTS.read({"terms": {"think": weight}})


def test_a_reward_of_metrics_alone_is_refused(compose):
    for terms in ({}, {"think": 0}):
        with refused(ConfigError, "no_weighted_term", "samr1.reward.terms: found", "mask_iou: 1"):
            compose("", terms)
