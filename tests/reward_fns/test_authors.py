"""Rewards against their authors' code, as tests/reward_fns/authors.py has it: thousands of answers, usable and not."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from reward_fns import dr_seg, seg_zero, star, vision_reasoner
from reward_fns.boxes import inclusive_iou
from tests.reward_fns import authors
from tests.reward_fns.scoring import SEGMENTER, image_extra, objects, score, think, truth, truth_with_masks

TRUTH: list[tuple[list[float], list[float]]] = [
    ([100, 100, 199, 199], [149.5, 149.5]),
    ([400, 100, 499, 199], [449.5, 149.5]),
    ([100, 500, 299, 699], [199.5, 599.5]),
]
ROWS = {
    count: truth([box for box, _ in TRUTH[:count]], [[point] * 2 for _, point in TRUTH[:count]]) for count in range(4)
}
WORDS = ["One", "one.", " One !", "Two?", "“Two”", "a, b", "Your reasoning text", "更多。", "<look>red</look>",
         "<look> </look>", "<look></look> <look>x</look>", "."]  # fmt: skip
ODD: list[Any] = ["100", " 7 ", "1e2", "x", "", None, True, [1], {}, 1e308, -5, 0.5]


def coordinates(draw: random.Random, true: list[float]) -> Any:
    """The true numbers, shifted, or with an odd value, or of another length, or something else."""
    if (kind := draw.random()) < 0.08:
        return draw.choice([None, "box", {}, 7, [], true[:-1], [*true, 1], [true]])
    shift = draw.choice([0, 0, 3, 9.5, 10, 29, 30, 31, 50, 99, 100, 150, 400])
    values: list[Any] = [
        number + draw.choice([-1, 1]) * shift * draw.random() ** draw.choice([0, 2]) for number in true
    ]
    if kind < 0.16:
        values[draw.randrange(len(values))] = draw.choice(ODD)
    if kind < 0.2:
        values = [str(value) for value in values]
    if kind > 0.95:
        values = values[::-1]
    return [round(value) if isinstance(value, float) and draw.random() < 0.5 else value for value in values]


def entry(draw: random.Random) -> Any:
    box, point = draw.choice(TRUTH)
    value: dict[str, Any] = {"bbox_2d": coordinates(draw, box), "point_2d": coordinates(draw, point)}
    if draw.random() < 0.6:
        value["label"] = draw.choice(["cup", " ", "", 7, None])
    for key in list(value):
        if draw.random() < 0.04:
            del value[key]
    return value if draw.random() < 0.95 else draw.choice([None, "label", "bbox_2d", ["label"], 7, [], {}, "a word"])


def response(draw: random.Random, value: Any) -> str:
    inside = value if isinstance(value, str) else json.dumps(value)
    if draw.random() < 0.06:
        inside = draw.choice(
            ["", "[", "no JSON", inside[:-1], f" \n{inside}\t ", f"```json {inside}```", "7", '"a"', "null"]
        )
    text = think(inside, reasoning=" ".join(draw.choices(WORDS, k=draw.randint(0, 7))))
    change = draw.random()
    if change < 0.04:
        return draw.choice(
            [inside, f"<answer>{inside}</answer>", text + text, f" {text}", text.replace("</answer>", "")]
        )
    return text.replace("</think>", "</think> \n") if change < 0.1 else text


def many(seed: int, count: int = 400) -> list[str]:
    draw = random.Random(seed)
    return [response(draw, [entry(draw) for _ in range(draw.choice([0, 1, 1, 2, 2, 3, 4]))]) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", ROWS)
def test_vision_reasoner_pays_what_its_authors_code_pays(seed: int, count: int) -> None:
    for text in many(seed):
        found = score(vision_reasoner.compute_score, text, ROWS[count])
        expected = {
            "think": authors.think(text),
            "format": authors.answer_format(text, 1, 1),
            "accuracy": authors.vision_reasoner_accuracy(text, TRUTH[:count]),
            "non_repetition": authors.vision_reasoner_non_repetition(text),
        }
        assert {name: found[name] for name in expected} == pytest.approx(expected), text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", ROWS)
def test_dr_seg_pays_what_its_authors_code_pays(seed: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dr_seg, "_windows", {})
    for text in many(seed):
        found = score(dr_seg.compute_score, text, ROWS[count], reward={"window": {"path": None, "step": 10**6}})
        expected = {
            "think": authors.think(text),
            "format": authors.answer_format(text, 1, 1),
            "look": authors.dr_seg_look(text),
            "non_repetition": authors.dr_seg_non_repetition(text),
        }
        number, pairs = authors.dr_seg_metrics(text, TRUTH[:count])
        assert {name: found[name] for name in expected} == pytest.approx(expected), text
        assert found["metric/count"] == pytest.approx(number), text
        pair = (found["metric/iou"], found["metric/point"])
        assert any(pair == pytest.approx(possible, nan_ok=True) for possible in pairs), (text, pair, pairs)


@pytest.mark.parametrize("seed", range(4))
def test_stars_format_is_its_authors(seed: int, fake: Any, tmp_path: Any) -> None:
    extra, row = image_extra(tmp_path), truth_with_masks((100, 100, 199, 199))
    for text in many(seed, 100):
        found = score(star.compute_score, text, row, extra, segmenter=SEGMENTER)
        assert found["format"] == pytest.approx(authors.answer_format(text, 2 / 3, 2 / 3, 2 / 3)), text


@pytest.mark.parametrize("seed", range(4))
def test_seg_zero_pays_what_its_authors_code_pays(seed: int) -> None:
    draw = random.Random(seed)
    box, points = [100, 100, 199, 199], [[120, 120], [180, 180]]
    row = truth([box], [points])
    for _ in range(400):
        value = {
            "bbox": coordinates(draw, box),
            "points_1": coordinates(draw, points[draw.randrange(2)]),
            "points_2": coordinates(draw, points[draw.randrange(2)]),
        }
        for key in list(value):
            if draw.random() < 0.04:
                del value[key]
        text = response(draw, value)
        found, expected = score(seg_zero.compute_score, text, row), authors.seg_zero(text, box, points)
        assert {name: found[name] for name in expected} == expected, text


def test_a_list_of_words_between_objects_costs_vision_reasoner_nothing_but_its_share() -> None:
    answer = [*objects(TRUTH[0][0]), "label", *objects(TRUTH[0][0])]
    found = score(vision_reasoner.compute_score, think(answer), ROWS[1])
    assert found["format"] == pytest.approx(4 / 3), "StAR's rule for labels would end at the word"


def test_boxes_that_share_one_column_overlap_by_it_but_not_in_seg_zero() -> None:
    one, other = np.array([[0.0, 0, 9, 9]]), np.array([[9.0, 0, 18, 9]])
    assert inclusive_iou(one, other)[0, 0] == pytest.approx(10 / 190)
    line, wide = np.array([[5.0, 0, 5, 9]]), np.array([[5.0, 0, 6, 9]])
    assert inclusive_iou(line, wide)[0, 0] == 0.5 and inclusive_iou(line, line)[0, 0] == 1
    answer = json.dumps({"bbox": [5, 0, 5, 9], "points_1": [5, 1], "points_2": [5, 2]})
    row = truth([[5, 0, 5, 9]], [[[5, 1], [5, 2]]])
    assert score(seg_zero.compute_score, think(answer), row)["box_iou"] == 0
    listed = [{"bbox_2d": [5, 0, 5, 9], "point_2d": [5, 1]}]
    assert score(vision_reasoner.compute_score, think(listed), row)["accuracy"] == 3


def test_dr_seg_pays_count_for_unreadable_boxes_and_reads_numbers_in_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dr_seg, "_windows", {})

    def metrics(answer: Any, row: str = ROWS[1], **more: Any) -> list[float]:
        reward = {"window": {"path": None, "step": 10**6}, **more}
        found = score(dr_seg.compute_score, answer if isinstance(answer, str) else think(answer), row, reward=reward)
        return [found[f"metric/{name}"] for name in ("iou", "count", "point")]

    words = [{"bbox_2d": "here", "point_2d": [1, 2]}]
    assert metrics(words) == [0, 1, 0] and metrics(words, strict=True) == [0, 0, 0]
    strings = [{"bbox_2d": ["100", "100", "199", "199"], "point_2d": ["149.5", "149.5"]}]
    assert metrics(strings) == [1, 1, 1]
    assert metrics([], ROWS[0]) == metrics("no answer", ROWS[0]) == [0, 1, 0], "published: nothing of nothing"
    assert metrics([], ROWS[0], strict=True) == [0, 1, 0] and metrics("no answer", ROWS[0], strict=True) == [0, 0, 0]


def test_acc_is_1_for_the_empty_list_on_a_row_without_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dr_seg, "_windows", {})
    for module, reward in ((vision_reasoner, {}), (dr_seg, {"window": {"path": None, "step": 10**6}})):
        for text, expected in ((think([]), 1), ("no answer", 0), (think(objects(TRUTH[0][0])), 0), (think("{"), 0)):
            assert score(module.compute_score, text, ROWS[0], reward=reward)["acc"] == expected
        assert score(module.compute_score, think([]), ROWS[1], reward=reward)["acc"] == 0
