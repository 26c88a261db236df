"""StAR's reward: tiers, one matching of masks, boxes and points, and both of its stages, worked by hand."""

from __future__ import annotations

import pytest

from reward_fns.star import WEIGHTS, compute_score
from samr1_verl.config import ConfigError
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.ground_truth import RowError
from samr1_verl.segmenters import SegmenterError
from tests.errors import refused
from tests.reward_fns.scoring import (
    EXTRA,
    SEGMENTER,
    image_extra,
    objects,
    rectangle,
    score,
    think,
    truth,
    truth_with_masks,
)

A, B = (100, 100, 200, 200), (400, 100, 500, 200)  # 100 x 100 pixels each, and their masks
SECOND_STAGE = {"mask": 2, "box_iou": 0, "box_l1": 0, "point": 0, "count": 0}


@pytest.fixture
def star(fake, tmp_path):
    extra = image_extra(tmp_path)

    def star(answer, row, **kwargs):
        text = answer if isinstance(answer, str) else think(answer)
        result = score(compute_score, text, row, extra, segmenter=SEGMENTER, **kwargs)
        weights = WEIGHTS | kwargs.get("reward", {}).get("terms", {})
        assert result["score"] == pytest.approx(sum(weights[name] * result[name] for name in weights))
        return result

    return star


def test_a_perfect_answer_scores_13(star):
    result = star(objects(B, A, label=True), truth_with_masks(A, B))
    assert {name: result[name] for name in WEIGHTS} == {
        "think": 1, "format": pytest.approx(2), "mask": 5, "box_iou": 1, "box_l1": 1, "point": 1, "count": 1,
        "non_repetition": 1,
    }  # fmt: skip
    assert (result["score"], result["acc"]) == (pytest.approx(13), 1)


# The answer's mask is its box: columns 100 to `right` of A's 100 to 200, so IoU = (right - 100) / 100.
@pytest.mark.parametrize(
    ("right", "tier"),
    [(200, 5), (191, 5), (190, 4), (181, 4), (180, 3), (171, 3), (170, 2), (151, 2), (150, 1), (131, 1), (130, 0)],
)
def test_the_tiers_are_strictly_above_their_threshold(star, right, tier):
    result = star(objects((100, 100, right, 200)), truth_with_masks(A))
    assert (result["mask"], result["acc"]) == (tier, (right - 100) / 100)


def test_sums_are_divided_by_the_larger_number_of_objects(star):
    one_of_two = star(objects(A, label=True), truth_with_masks(A, B))
    assert [one_of_two[name] for name in ("mask", "box_iou", "box_l1", "point", "count")] == [2.5, 0.5, 0.5, 0.5, 0]
    twice = star(objects(A, A, label=True), truth_with_masks(A))
    assert [twice[name] for name in ("mask", "box_iou", "box_l1", "point", "count")] == [2.5, 0.5, 0.5, 0.5, 0]


def test_box_point_and_label_earn_two_thirds_each(star):
    row = truth_with_masks(A)
    assert star(objects(A), row)["format"] == pytest.approx(4 / 3)
    blank = [{**objects(A)[0], "label": " "}]
    assert star(blank, row)["format"] == pytest.approx(4 / 3)
    assert star([{"label": "cup"}], row)["format"] == pytest.approx(2 / 3)


def test_the_matching_follows_the_weights(star):
    # First answer: A's mask to 60 % (tier 2), nothing else of A; its point lies near B's: 2 with A, 1 with B.
    # Second answer: A itself: 5 + 1 + 1 + 1 = 8 with A. Best: 8 + 1.
    first = {"bbox_2d": [100, 100, 160, 200], "point_2d": [450, 150]}
    result = star([first, *objects(A)], truth_with_masks(A, B))
    assert (result["mask"], result["point"]) == (2.5, 0.5)  # the point lies outside its own box, so it earns nothing


def test_the_second_stage_trains_on_masks_alone(star):
    result = star(objects(A, label=True), truth_with_masks(A, B), reward={"terms": SECOND_STAGE})
    # think 1 + format 2 + 2 x 2.5 + non-repetition 1; boxes and points are metrics
    assert (result["score"], result["box_iou"]) == (pytest.approx(9), 0.5)


def test_an_object_that_is_no_prompt_has_an_empty_mask(star, fake):
    inverted = {"bbox_2d": [200, 100, 100, 200], "point_2d": [150, 150]}
    off = {"bbox_2d": [100, 100, 200, 200], "point_2d": [-1, 150]}
    huge = {"bbox_2d": [-1e308, -1e308, 1e308, 1e308], "point_2d": [150, 150]}
    assert star([inverted], truth_with_masks(A))["mask"] == 0 and fake.encoded == []
    result = star([off], truth_with_masks(A))
    assert (result["mask"], result["box_iou"], result["box_l1"], result["point"]) == (0, 1, 1, 0)
    # the whole image, once clipped: IoU 10,000 / 705,600; its point is right and in its box
    result = star([huge], truth_with_masks(A))
    assert (result["mask"], result["point"]) == (0, 1)


def test_the_same_object_twenty_times_is_decoded_once(star, fake, monkeypatch):
    prompts = []
    decode = fake.decode
    monkeypatch.setattr(fake, "decode", lambda embedding, asked: prompts.append(len(asked)) or decode(embedding, asked))
    result = star(objects(*[A] * 20), truth_with_masks(A))
    assert prompts == [1] and result["mask"] == 5 / 20


def test_ignored_pixels_count_on_neither_side(star):
    ignore = encode_rle(rectangle(150, 0, 840, 840))  # all of B, and the right half of A
    result = star(objects((100, 100, 150, 200)), truth_with_masks(A, ignore=ignore))
    assert result["acc"] == 1


def test_an_invented_object_earns_form_alone_and_the_empty_list_everything(star, fake):
    invented = star(objects(A, label=True), truth_with_masks())
    assert invented["score"] == pytest.approx(1 + 2 + 1) and invented["acc"] == 0
    refused = star([], truth_with_masks())
    assert refused["score"] == pytest.approx(1 + 2 + 5 + 1 + 1 + 1 + 1 + 1) and refused["acc"] == 1
    assert fake.encoded == []


def test_answers_are_read_in_thousandths_on_request(fake, tmp_path):
    extra = image_extra(tmp_path) | {"frame": "thousand", "policy_size": [832, 832]}
    box = [1000 * edge / 840 for edge in A]
    result = score(compute_score, think(objects(box)), truth_with_masks(A), extra, segmenter=SEGMENTER)
    assert (result["mask"], result["box_iou"], result["box_l1"], result["point"]) == (5, 1, 1, 1)


@pytest.mark.parametrize(
    ("row", "extra", "code", "names"),
    [
        (truth([A]), {}, "mask_count_differs", ["ground_truth.masks", "0 masks", "1 boxes"]),
        (truth_with_masks(A, masks=["0"]), {}, "broken_mask", ["ground_truth.masks", "ignore", "RLE", "0 pixels"]),
        (truth_with_masks(A), {"image": None}, "image_missing", ["extra_info.image", "extra_info.sha256"]),
    ],
)
@pytest.mark.parametrize("text", ["", think(objects(A))])
def test_a_bad_row_is_an_error_for_every_answer(fake, tmp_path, row, extra, code, names, text):
    with refused(RowError, code, *names):
        score(compute_score, text, row, image_extra(tmp_path) | extra, segmenter=SEGMENTER)


def test_a_fault_of_the_segmenter_is_an_exception_never_a_score(star, fake):
    fake.fault = RuntimeError("out of memory")
    with refused(SegmenterError, "encode_failed", "out of memory"):
        star(objects(A), truth_with_masks(A))


def test_a_missing_segmenter_is_named():
    with refused(ConfigError, "no_segmenter", "reward_kwargs.segmenter", "this reward"):
        score(compute_score, "", truth_with_masks(A), EXTRA)
