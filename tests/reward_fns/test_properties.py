"""What holds of every reward and term, whatever the answer: order, monotony, ranges, the same output twice."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reward_fns import composed, dr_seg, samr1, seg_zero, star, vision_reasoner
from reward_fns.dr_seg import RANKED, Window
from reward_fns.terms import TERMS
from samr1_verl.answers import Answer
from samr1_verl.rows.ground_truth import GroundTruth, View
from samr1_verl.scoring.rollout import Masks, Rollout
from tests.reward_fns.scoring import (
    SEGMENTER,
    image_extra,
    objects,
    score,
    seg_zero_answer,
    think,
    truth,
    truth_with_masks,
)
from tests.test_answers import texts

MASKS = {"segmenter": SEGMENTER}
WINDOW = {"reward": {"window": {"path": None, "step": 1_000_000}}}
EVERY = {"reward": {"terms": dict.fromkeys(TERMS, 1.0)}}
# Documented ranges of components; every term of terms.py and every other component is in [0, 1].
RANGES = {
    "samr1": (samr1, MASKS, {"seg": 4, "score": 6}),
    "seg_zero": (seg_zero, {}, {"score": 5}),
    "vision_reasoner": (vision_reasoner, {}, {"format": 2, "accuracy": 3, "score": 7}),
    "star": (star, MASKS, {"format": 2, "mask": 5, "score": 13}),
    "dr_seg": (dr_seg, WINDOW, {"format": 2, "score": 8}),
    "composed": (composed, {**MASKS, **EVERY}, {"score": 9}),
}
quick = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

edges = st.integers(0, 399)
boxes = st.tuples(edges, edges, st.integers(20, 400), st.integers(20, 400)).map(
    lambda one: (one[0], one[1], min(839, one[0] + one[2]), min(839, one[1] + one[3]))
)
several = st.lists(boxes, min_size=1, max_size=4, unique=True)


@pytest.fixture
def extra(fake, tmp_path, monkeypatch):
    """`extra_info` of an image that the fake segmenter opens."""
    monkeypatch.setattr(dr_seg, "_windows", {})
    return image_extra(tmp_path)


def listed_rewards() -> list[tuple]:
    return [(module, kwargs) for module, kwargs, _ in (RANGES[name] for name in ("vision_reasoner", "star", "dr_seg"))]


@quick
@given(several, several, st.randoms())
def test_the_order_of_objects_changes_no_score(extra, true, answered, chance: random.Random):
    shuffled_true, shuffled = chance.sample(true, len(true)), chance.sample(answered, len(answered))
    for module, kwargs in listed_rewards():
        before = score(module.compute_score, think(objects(*answered)), truth_with_masks(*true), extra, **kwargs)
        after = score(
            module.compute_score, think(objects(*shuffled)), truth_with_masks(*shuffled_true), extra, **kwargs
        )
        assert after["score"] == pytest.approx(before["score"]), module


@quick
@given(boxes, boxes, st.permutations([0, 1]))
def test_the_order_of_points_changes_no_score(extra, true, box, order):
    row, points = truth_with_masks(true), [[box[0] + 5, box[1] + 5], [box[2] - 5, box[3] - 7]]
    for module, kwargs in ((seg_zero, {}), (samr1, MASKS), (composed, {**MASKS, **EVERY})):
        before = score(module.compute_score, think(seg_zero_answer(box, *points)), row, extra, **kwargs)
        after = score(
            module.compute_score, think(seg_zero_answer(box, *(points[at] for at in order))), row, extra, **kwargs
        )
        assert after["score"] == before["score"], module


@quick
@given(
    boxes,
    st.sampled_from([(1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1)]),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_moving_a_perfect_box_away_never_raises_a_score(extra, true, way, first, second):
    """The box moves alone: its points stay, so that no other term changes but those that ask whether it holds them."""
    x1, y1, x2, y2 = true
    centre = [[(x1 + x2) // 2, (y1 + y2) // 2]] * 2
    row = truth_with_masks(true)
    near, far = sorted((first, second))

    def moved(by: int) -> list[int]:
        return [x1 + by * way[0], y1 + by * way[1], x2 + by * way[0], y2 + by * way[1]]

    for module, kwargs in ((seg_zero, {}), (samr1, MASKS)):
        answers = [think(seg_zero_answer(moved(by), *centre)) for by in (0, near, far)]
        scores = [score(module.compute_score, text, row, extra, **kwargs)["score"] for text in answers]
        assert scores == sorted(scores, reverse=True), (module, scores)
    for module, kwargs in listed_rewards():
        answers = [think([{"bbox_2d": moved(by), "point_2d": centre[0]}]) for by in (0, near, far)]
        scores = [score(module.compute_score, text, row, extra, **kwargs)["score"] for text in answers]
        assert scores == sorted(scores, reverse=True), (module, scores)


one_object = st.builds(
    lambda box, keys: think(objects(box) if keys else seg_zero_answer(box, box[:2], box[2:])), boxes, st.booleans()
)
responses = texts | texts.map(lambda text: f"<think>a. a. a</think><answer>{text}</answer>") | one_object


@quick
@given(responses, st.lists(boxes, min_size=1, max_size=2, unique=True), st.sampled_from(sorted(RANGES)))
def test_every_component_stays_in_its_range_and_the_same_input_gives_the_same_output(extra, text, true, name):
    module, kwargs, highest = RANGES[name]
    row = truth_with_masks(*(true[:1] if name == "seg_zero" else true))
    result = score(module.compute_score, text, row, extra, **kwargs)
    for key, value in result.items():
        if key not in ("intersection", "union", "ignored", "ignored_predicted"):
            assert 0 <= value <= highest.get(key, 1), (key, value)
    again = score(module.compute_score, text, row, extra, **kwargs)
    assert again == result


@quick
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_terms_that_compare_masks_stay_in_their_range_and_are_1_for_equal_masks(height, width, seed, first, second):
    chance = np.random.default_rng(seed)
    predicted, target = (chance.random((height, width)) < share for share in (first, second))
    view = View(image=None, sha256=None, policy_size=(width, height), frame="absolute")
    truths = GroundTruth(size=(height, width), masks=())
    for term in (term.function for term in TERMS.values() if term.compares_masks):
        value = term(Rollout("", truths, view, "row", Answer(()), Masks(predicted, target)))
        assert 0 <= value <= 1 + 1e-12
        if target.any():
            assert term(Rollout("", truths, view, "row", Answer(()), Masks(target, target))) == pytest.approx(1)


@given(st.lists(st.tuples(*[st.floats(0, 1)] * len(RANKED)), min_size=1, max_size=40), st.integers(1, 5), st.randoms())
@settings(max_examples=60, deadline=None)
def test_ranks_are_monotone_and_the_order_within_a_step_changes_nothing(rows, step, chance):
    window, other = Window(step), Window(step)
    for start in range(0, len(rows) - len(rows) % step, step):
        group = rows[start : start + step]
        for row in group:
            window.add(row)
        for row in chance.sample(group, step):
            other.add(row)
        ranks = [window.rank(row) for row in group]
        assert ranks == [other.rank(row) for row in group]
        for column in range(len(RANKED)):
            pairs = sorted((row[column], rank[column]) for row, rank in zip(group, ranks, strict=True))
            assert [rank for _, rank in pairs] == sorted(rank for _, rank in pairs)
            assert all(0 <= rank <= 1 for _, rank in pairs)


def test_a_row_without_an_object_gives_no_accuracy(extra):
    for module, kwargs in listed_rewards():
        result = score(module.compute_score, think(objects((1, 1, 9, 9))), truth_with_masks(), extra, **kwargs)
        assert result["acc"] == 0 and result["score"] <= 5, module
    assert score(vision_reasoner.compute_score, think([]), truth([]))["accuracy"] == 0
