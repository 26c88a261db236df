"""The verdict: each of the four things counts as seen only where the log shows it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from samr1_verl.rehearsal.evidence import Check, RehearsalError, Start, examine, read_start, times
from tests.errors import refused

ROWS = ("a", "b", "c", "d")


def step(**changes: float) -> dict[str, float]:
    values = {
        "critic/score/min": 0.0,
        "critic/score/max": 2.0,
        "critic/groups/zero_advantage_frac": 0.25,
        "reward/acc": 0.3,
        "training/lost_rollouts": 0.0,
        "actor/grad_norm": 0.7,
        "training/rollout_probs_diff_mean": 2e-7,
    }
    return {**values, **changes}


def good() -> tuple[Start, Start]:
    """A first start whose updates changed three of four answers, and a second start that resumed from it."""
    before = {row: "old" for row in ROWS}
    after = {**dict.fromkeys(ROWS, "new"), "d": "old"}
    return Start({0: {}, 1: step(), 2: step()}, {0: before, 2: after}), Start({2: {}, 3: step()}, {2: dict(after)})


def seen(first: Start, second: Start, masks: bool = True) -> dict[str, bool]:
    return {check.name: check.seen for check in examine(first, second, masks)}


def test_a_run_in_which_everything_works_passes() -> None:
    assert set(seen(*good()).values()) == {True}
    assert all(isinstance(check, Check) and check.detail for check in examine(*good(), masks=True))


def test_turns_are_told_and_a_mask_of_any_turn_counts() -> None:
    first, second = good()
    for values in steps(first):
        values |= {"reward/turns": 1.4, "reward/acc": 0.0, "reward/acc/turn_1": 0.02}
    rewards = next(check for check in examine(first, second, masks=True) if check.name == "rewards")
    assert rewards.seen and rewards.detail.endswith(", mean mask IoU 0.02, 0.02, turns 1.4, 1.4")


Fault = Callable[[Start, Start], None]
FAULTS: dict[str, tuple[str, Fault]] = {
    "all scores are equal": ("rewards", lambda a, b: [s.update({"critic/score/max": 0.0}) for s in steps(a)]),
    "no group has a gradient": (
        "rewards",
        lambda a, b: [s.update({"critic/groups/zero_advantage_frac": 1.0}) for s in steps(a)],
    ),
    "a score is not a number": ("rewards", lambda a, b: a.metrics[2].update({"critic/score/max": float("nan")})),
    "rollouts are lost": ("rewards", lambda a, b: a.metrics[1].update({"training/lost_rollouts": 1.0})),
    "the segmenter makes no mask": ("rewards", lambda a, b: [s.update({"reward/acc": 0.0}) for s in steps(a)]),
    "no mask is looked at": ("rewards", lambda a, b: [s.update({"reward/turns": 1.0}) for s in steps(a)]),
    "a gradient is 0": ("gradients", lambda a, b: a.metrics[2].update({"actor/grad_norm": 0.0})),
    "a gradient is infinite": ("gradients", lambda a, b: a.metrics[1].update({"actor/grad_norm": float("inf")})),
    "the rollout keeps its old weights": (
        "weight updates",
        lambda a, b: a.metrics[2].update({"training/rollout_probs_diff_mean": 3e-3}),
    ),
    "the rollout's log-probs are missing": (
        "weight updates",
        lambda a, b: a.metrics[2].pop("training/rollout_probs_diff_mean"),
    ),
    "no answer changes": ("weight updates", lambda a, b: a.answers[2].update(a.answers[0])),
    "the resume begins anew": ("resume", lambda a, b: b.metrics.update({1: step()})),
    "the resume trains nothing": ("resume", lambda a, b: b.metrics.pop(3)),
    "the resume has the weights of the start": ("resume", lambda a, b: b.answers[2].update(a.answers[0])),
    "the resume validates another step": ("resume", lambda a, b: b.answers.clear()),
}


def steps(start: Start) -> list[dict[str, float]]:
    return [start.metrics[1], start.metrics[2]]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_not_seen_to_work(fault: str) -> None:
    name, break_it = FAULTS[fault]
    first, second = copy.deepcopy(good())
    break_it(first, second)
    assert not seen(first, second)[name]


def test_a_reward_without_masks_needs_no_segmenter() -> None:
    first, second = good()
    for values in steps(first):
        del values["reward/acc"]
    assert seen(first, second, masks=False)["rewards"]


def test_a_missing_step_is_an_error() -> None:
    first, second = good()
    del first.metrics[2]
    with refused(RehearsalError, "missing_step", "step 2", "[0, 1]"):
        examine(first, second, masks=True)


def test_the_log_and_the_validations_of_a_start_are_read(tmp_path: Path) -> None:
    log, validation = tmp_path / "metrics.jsonl", tmp_path / "validation"
    validation.mkdir()
    lines = [{"step": 0, "data": {"x": 1.0}}, {"step": 1, "data": {"timing_s/gen": 2.04, "timing_s/step": 3.0}}]
    log.write_text("\n".join(map(json.dumps, lines)))
    (validation / "0.jsonl").write_text(json.dumps({"input": "find", "gts": "{}", "output": "there"}))
    start = read_start(log, validation)
    assert start.metrics[1]["timing_s/gen"] == 2.04 and start.answers == {0: {"find{}": "there"}}
    assert times(start.metrics) == {"generation and rewards": [2.0], "step without validation": [3.0]}
    with refused(RehearsalError, "no_training_log", tmp_path / "none.jsonl"):
        read_start(tmp_path / "none.jsonl", validation)
