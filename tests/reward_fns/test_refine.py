"""The reward of a dialogue: golden cases, its keys, and that a bad first mask never pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reward_fns import samr1
from reward_fns.refine import WEIGHTS, compute_score
from samr1_verl.config import ConfigError
from samr1_verl.segmenters import SegmenterError
from tests.errors import refused
from tests.reward_fns.scoring import SEGMENTER, image_extra, score, seg_zero_answer, think, truth_with_masks
from tests.reward_fns.test_resistance import CORPUS

REFINE = {"max_turns": 3, "turn_tokens": 48, "look": "tiny"}
ROW = truth_with_masks((0, 0, 100, 100))
DONE = think("done")


def wide(width: int) -> str:
    """An answer whose mask is `width` x 100 pixels of the true 100 x 100, so its IoU is width / 100."""
    return think(seg_zero_answer([0, 0, width, 100], [1, 1], [2, 2]))


class Scorer:
    def __init__(self, extra: dict[str, Any]) -> None:
        self.extra = extra

    def __call__(self, *turns: str, row: str = ROW, **reward: Any) -> dict[str, float]:
        extra = self.extra | {"turns": list(turns)}
        text = "assistant".join(turns)  # verl's text of the whole sequence, in which several answers stand
        return score(compute_score, text, row, extra, segmenter=SEGMENTER, reward=reward or None, refine=REFINE)


@pytest.fixture
def rated(fake: Any, tmp_path: Path) -> Scorer:
    return Scorer(image_extra(tmp_path))


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        # seg + think + format + first + gain - 0.1 a mend
        ([wide(90), DONE], 4 + 1 + 1 + 0.9),
        ([wide(60), DONE], 2 + 1 + 1 + 0.6),
        ([wide(60), wide(90), DONE], 4 + 1 + 1 + 0.9 - 0.1),
        ([wide(90), wide(60), DONE], 2 + 1 + 1 + 0.6 - 0.1),
        ([wide(20), wide(60), wide(90)], 4 + 1 + 1 + 0.9 - 0.2),
        ([wide(90), wide(90), wide(90)], 4 + 1 + 1 + 0.9 - 0.2),
        ([wide(90), "no answer"], 0 + 0 + 0 + 0 - 0.1),
        ([wide(90), think({})], 0 + 1 + 0 + 0 - 0.1),
        ([wide(90), f"\x00{DONE}"], 4 + 0 + 1 + 0.9),
        ([DONE], 0 + 1 + 0 + 0),
        ([""], 0),
    ],
)
def test_golden_cases(rated: Scorer, turns: list[str], expected: float) -> None:
    assert rated(*turns)["score"] == pytest.approx(expected)


def test_the_keys_of_every_turn(rated: Scorer) -> None:
    found = rated(wide(20), wide(90), DONE)
    assert (found["first"], found["gain"], found["mends"]) == (pytest.approx(0.2), pytest.approx(0.7), 1)
    assert (found["turns"], found["done"], found["acc"]) == (3, 1, pytest.approx(0.9))
    assert [found[f"acc/turn_{turn}"] for turn in (1, 2, 3)] == pytest.approx([0.2, 0.9, 0.9])
    assert (found["intersection"], found["union"]) == (9000, 10000)
    assert {frozenset(rated(*turns)) for turns in ([DONE], [wide(20)], [wide(20), ""])} == {frozenset(found)}


def test_a_response_without_turns_is_one_turn(rated: Scorer) -> None:
    found = score(compute_score, wide(60), ROW, rated.extra, segmenter=SEGMENTER, refine=REFINE)
    assert found == rated(wide(60)) and (found["turns"], found["done"]) == (1, 0)


def test_an_image_is_encoded_once_for_all_turns(rated: Scorer, fake: Any) -> None:
    rated(wide(20), wide(60), wide(90))
    assert len(fake.encoded) == 1


def test_a_row_without_an_object(rated: Scorer) -> None:
    empty = truth_with_masks()
    assert rated(think([]), row=empty)["score"] == pytest.approx(4 + 1 + 1 + 1)
    assert rated(wide(20), DONE, row=empty)["score"] == pytest.approx(2)
    assert rated(wide(20), think([]), row=empty)["acc"] == 1


WIDTHS = st.integers(1, 100)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=WIDTHS, last=WIDTHS, weights=st.tuples(st.floats(0, 5), st.floats(0, 1)))
def test_a_bad_first_mask_never_pays(rated: Scorer, first: int, last: int, weights: tuple[float, float]) -> None:
    """The last mask alone, said at once, earns at least as much as the same mask after another one."""
    terms = {"first": weights[0], "gain": weights[0] * weights[1]}
    at_once, later = rated(wide(last), DONE, terms=terms), rated(wide(first), wide(last), DONE, terms=terms)
    if first <= last:
        assert later["score"] <= at_once["score"] + WEIGHTS["mends"] + 1e-9
    better, worse = rated(wide(max(first, last)), DONE, terms=terms), rated(wide(min(first, last)), DONE, terms=terms)
    assert better["score"] >= worse["score"]


def test_a_weight_that_pays_for_a_bad_first_mask_is_refused(rated: Scorer) -> None:
    with refused(ConfigError, "gain_above_first", "samr1.reward.terms.gain: found 2,", "first, 1:"):
        rated(wide(60), DONE, terms={"gain": 2.0})


@pytest.mark.parametrize("name", CORPUS)
def test_degenerate_answers_in_any_turn_earn_their_format_at_most(rated: Scorer, name: str) -> None:
    text = CORPUS[name][0]
    alone = rated(text, DONE)
    row, extra = ROW, rated.extra
    single = score(samr1.compute_score, text, row, extra, segmenter=SEGMENTER)
    assert alone["score"] == pytest.approx(single["score"] + single["acc"])  # `first` is the mask's IoU
    after = rated(wide(90), text)
    assert after["score"] <= alone["score"] and after["acc"] == pytest.approx(single["acc"])


def test_a_fault_is_no_score(rated: Scorer, fake: Any) -> None:
    fake.fault = SegmenterError("no_memory", "the segmenter", "out of memory")
    with refused(SegmenterError, "encode_failed", "out of memory"):
        rated(wide(20), wide(90), DONE)


def test_the_section_is_checked() -> None:
    with refused(ConfigError, "invalid_value", "samr1.refine.max_turns: ", "found 1"):
        score(compute_score, "", ROW, segmenter=SEGMENTER, refine={**REFINE, "max_turns": 1})
