"""An evaluation of a policy that looks at its mask: figures turn by turn, a resumed journal, votes."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from samr1_verl.evaluation.ballots import elected
from samr1_verl.evaluation.journal import PREDICTIONS
from samr1_verl.evaluation.poll import Poll
from samr1_verl.evaluation.run import Evaluation, results_of
from samr1_verl.evaluation.table import show
from samr1_verl.evaluation.turns import COMPARED, turn_figures
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.policies.base import Reply
from samr1_verl.policies.dialogue import RefiningPolicy
from samr1_verl.scoring.sample import Sample
from tests.evaluation.world import Choice, RulePolicy, answer, inference_config, noisy, nothing, rows
from tests.evaluation.world import evaluation as one_turn
from tests.policies.scripted import DONE, REFINE, turn_of

ROWS = 12


def wandering(item: Mapping[str, Any], seed: int) -> Reply:
    """Boxes that row, seed and turn decide; sometimes done, sometimes unusable."""
    turn = turn_of(item)
    draw = random.Random(f"{item['extra_info']['index']} {seed} {turn}")
    if turn and draw.random() < 0.4:
        return Reply(DONE, 5)
    if draw.random() < 0.2:
        return Reply("I see nothing.", 3)
    x, y = draw.randint(8, 24), draw.randint(6, 18)
    return Reply(answer([x, y, x + 16, y + 12]), 20 + turn)


@dataclass
class Wandering(Choice):
    """Stands in for `PolicyChoice` with `samr1.refine`."""

    def load(self) -> Any:
        config = inference_config()
        return RefiningPolicy(self.policy, REFINE, config.segmenter, config.caps)


def evaluation(file: Path, policy: RulePolicy | None = None, **more: Any) -> Evaluation:
    return Evaluation(file, Wandering(policy or RulePolicy(wandering)), inference_config(), block=4, seed=3, **more)


def iou_after(sample: Sample, turn: int) -> float:
    """The IoU of the last mask up to a turn, from the pixels."""
    masks = [told.mask for told in sample.turns[:turn] if told.mask is not None] or [sample.mask]
    mask, truth = (decode_rle(counts, sample.size) for counts in (masks[-1], sample.truth or ""))
    return float((mask & truth).sum() / (mask | truth).sum())


def test_figures_turn_by_turn_are_those_of_the_pixels(tmp_path: Path) -> None:
    samples = evaluation(rows(tmp_path / "data", ROWS)).run(tmp_path / "out", False, nothing)
    found = results_of(samples, "lisa", 0, {})
    turns = found["turns"]
    lengths = [len(sample.turns) or 1 for sample in samples]
    assert set(lengths) == {1, 2, 3}, "dialogues of every length occur"
    assert turns["mean"] == pytest.approx(np.mean(lengths))
    assert turns["done"] == np.mean([bool(one.turns) and one.turns[-1].text == DONE for one in samples])
    assert turns["tokens"] == pytest.approx(np.mean([sample.tokens for sample in samples]))
    assert [stop["turn"] for stop in turns["after"]] == [1, 2, 3]
    for stop in turns["after"]:
        assert stop["reached"] == sum(length >= stop["turn"] for length in lengths)
        for name in COMPARED:  # every row has a target and no ignored pixels: the protocols agree
            assert stop[name]["giou"] == pytest.approx(np.mean([iou_after(one, stop["turn"]) for one in samples]))
    gious = [stop["lisa"]["giou"] for stop in turns["after"]]
    assert gious[-1] == found["giou"] and len(set(gious)) == 3
    assert turns["after"][-1]["segzero"]["ciou"] == found["segzero"]["ciou"]


def test_the_table_has_the_turns_and_a_policy_of_one_turn_has_none(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", ROWS)
    samples = evaluation(file).run(tmp_path / "out", False, nothing)
    console = Console(record=True, width=120, file=io.StringIO())
    results = results_of(samples, "lisa", 0, {})
    show(results, console)
    printed = console.export_text()
    assert f"{results['turns']['mean']:.2f} turns, {results['turns']['tokens']:.1f} tokens" in printed
    assert all(f"{stop['lisa']['giou']:.3f}" in printed for stop in results["turns"]["after"])
    single = one_turn(file, RulePolicy(noisy)).run(tmp_path / "single", False, nothing)
    assert turn_figures(single) is None and "turns" not in results_of(single, "lisa", 0, {})


def test_an_interrupted_evaluation_of_dialogues_goes_on(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", ROWS)
    whole = evaluation(file).run(tmp_path / "whole", False, nothing)
    path = tmp_path / "torn" / PREDICTIONS
    evaluation(file).run(tmp_path / "torn", False, nothing)
    path.write_bytes(path.read_bytes()[:-1000])
    policy = RulePolicy(wandering)
    after = evaluation(file, policy).run(tmp_path / "torn", False, nothing)
    assert after == whole and policy.asked > 0
    assert path.read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()


def test_votes_are_about_last_answers_and_the_elected_mask_has_no_turns(tmp_path: Path) -> None:
    polled = Poll(evaluation(rows(tmp_path / "data", 4)), 3).ask(tmp_path / "out", False, nothing)
    ballots = [ballot for row in polled for ballot in row]
    assert any(ballot.turns for ballot in ballots) and all(ballot.tokens for ballot in ballots)
    assert len({ballot.response for ballot in ballots}) > 4, "the answers to a row differ"
    assert all(elected(row).turns == () and elected(row).tokens is None for row in polled)
    assert "turns" not in results_of(list(map(elected, polled)), "lisa", 0, {})
