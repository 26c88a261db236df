"""The comparison of a run with a recorded one, and golden files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from scipy import stats

from samr1_verl.regress.golden import Golden, Place, first_difference, interval
from samr1_verl.regress.training import RegressError, Run, digest_of_state, digest_of_weights, read
from tests.errors import refused
from tests.regress.golden_files import FOLDER

HERE = Place.here()


def run(score: float = 2.0, samples: str = "a", weights: str = "w", **more: float) -> Run:
    return Run(
        metrics={0: {"val": 0.5}, 1: {"score": score, "loss": 0.1, **more}}, samples={1: samples}, weights=weights
    )


def golden(*repetitions: Run, place: Place = HERE) -> Golden:
    return Golden(recipe="samr1_tiny", overrides=[], steps=1, place=place, run=run(), repetitions=list(repetitions))


def test_an_equal_run_is_as_recorded() -> None:
    assert first_difference(golden(), run(), exact=True) is None
    assert first_difference(golden(run(1.9)), run(), exact=False) is None


@pytest.mark.parametrize(
    ("now", "step", "name"),
    [
        (run(math.nextafter(2.0, 3)), 1, "score"),
        (run(extra=1.0), 1, "extra"),
        (run(samples="b"), 1, "samples"),
        (run(weights="v"), -1, "weights"),
        (Run(metrics={0: {"val": 0.5}}, samples={1: "a"}, weights="w"), 1, "loss"),
    ],
)
def test_exactly_every_bit_counts(now: Run, step: int, name: str) -> None:
    found = first_difference(golden(), now, exact=True)
    assert found is not None and (found.step, found.name) == (step, name)
    assert found.recorded in str(found) and found.found in str(found)


def test_the_first_step_comes_first() -> None:
    now = run(3.0)
    now.metrics[0]["val"] = 0.4
    found = first_difference(golden(), now, exact=True)
    assert found is not None and (found.step, found.name, found.recorded, found.found) == (0, "val", "0.5", "0.4")


def test_elsewhere_a_metric_lies_in_the_prediction_interval_of_the_recorded_runs() -> None:
    """Scores 2.0, 1.9 and 2.2: mean 2.0333, variance 0.0233 with 2 degrees of freedom; three values are compared."""
    recorded = golden(run(1.9), run(2.2))
    reach = stats.t.ppf(1 - 0.01 / 2 / 3, 2) * math.sqrt(0.07 / 3 * (1 + 1 / 3))
    low, high = interval(recorded, 1, "score")
    assert (low, high) == pytest.approx((6.1 / 3 - reach, 6.1 / 3 + reach))
    for score, agrees in ((low + 1e-6, True), (low - 1e-6, False), (high - 1e-6, True), (high + 1e-6, False)):
        found = first_difference(recorded, run(score, samples="x", weights="y"), exact=False)
        assert (found is None) == agrees


def test_the_spread_of_a_metric_is_pooled_over_its_steps() -> None:
    runs = [Run(metrics={1: {"m": value}, 2: {"m": 5.0}}, samples={}, weights="") for value in (1.0, 2.0)]
    recorded = golden(runs[1]).model_copy(update={"run": runs[0]})
    one, two = (interval(recorded, step, "m") for step in (1, 2))
    assert one[1] - one[0] == pytest.approx(two[1] - two[0]) and sum(two) == pytest.approx(10)


def test_elsewhere_a_training_that_learns_nothing_is_found() -> None:
    recorded = Golden.load(FOLDER / "samr1_tiny.json")
    for name, value in (("reward/score", 0.0), ("actor/grad_norm", 0.0), ("actor/lr", 1e-3), ("reward/format", 0.5)):
        broken = recorded.run.model_copy(deep=True)
        broken.metrics[2][name] = value
        found = first_difference(recorded, broken, exact=False)
        assert found is not None and (found.step, found.name) == (2, name)
    silent = recorded.run.model_copy(deep=True)
    del silent.metrics[3]["actor/grad_norm"]
    found = first_difference(recorded, silent, exact=False)
    assert found is not None and (found.name, found.found) == ("actor/grad_norm", "None")


def test_without_repetitions_rounding_alone_is_allowed_elsewhere() -> None:
    assert first_difference(golden(), run(2.0001), exact=False) is None
    assert first_difference(golden(), run(2.01), exact=False) is not None


def test_no_number_equals_no_number() -> None:
    assert first_difference(golden(), run(), exact=True) is None
    recorded = golden()
    recorded.run.metrics[1]["score"] = math.nan
    assert first_difference(recorded, run(math.nan), exact=True) is None


def test_a_place_names_what_differs() -> None:
    other = HERE.model_copy(update={"processor": "Abacus", "packages": {**HERE.packages, "torch": "1.0"}})
    assert other.differences(HERE) == [
        f"processor Abacus, now {HERE.processor}",
        f"torch 1.0, now {HERE.packages['torch']}",
    ]
    assert HERE.differences(Place.here()) == []


def test_a_golden_file_comes_back(tmp_path: Path) -> None:
    recorded = golden(run(1.9))
    recorded.save(tmp_path / "golden.json")
    assert Golden.load(tmp_path / "golden.json") == recorded
    recorded.run.metrics[1]["ratio"] = math.nan
    recorded.save(tmp_path / "golden.json")
    assert math.isnan(Golden.load(tmp_path / "golden.json").run.metrics[1]["ratio"])


@pytest.mark.parametrize("text", ["", "{}", '{"version": 1}', "[" * 100])
def test_another_file_is_refused_with_the_command(text: str, tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text(text)
    with refused(RegressError, "no_golden_file", tmp_path / "golden.json", "samr1 regress record"):
        Golden.load(tmp_path / "golden.json")
    with refused(RegressError, "no_golden_file", tmp_path / "gone.json"):
        Golden.load(tmp_path / "gone.json")


def checkpoint(folder: Path, weight: float, moment: float) -> Path:
    actor = folder / "actor"
    actor.mkdir(parents=True)
    torch.save({"a": torch.tensor([weight])}, actor / "model_world_size_1_rank_0.pt")
    torch.save({"state": {0: {"exp_avg": torch.tensor([moment])}}}, actor / "optim_world_size_1_rank_0.pt")
    torch.save({"rng": [1, 2]}, actor / "extra_state_world_size_1_rank_0.pt")
    torch.save({"epoch": 0}, folder / "data.pt")
    return folder


def test_digests_are_of_tensors_and_not_of_files(tmp_path: Path) -> None:
    one, same = checkpoint(tmp_path / "one", 1.0, 2.0), checkpoint(tmp_path / "same", 1.0, 2.0)
    moment, weight = checkpoint(tmp_path / "moment", 1.0, 3.0), checkpoint(tmp_path / "weight", 1.5, 2.0)
    assert digest_of_weights(one) == digest_of_weights(same) == digest_of_weights(moment) != digest_of_weights(weight)
    assert digest_of_state(one) == digest_of_state(same) != digest_of_state(moment)


def test_times_and_random_names_are_left_out(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    checkpoint(run_folder / "global_step_1", 1.0, 2.0)
    (run_folder / "latest_checkpointed_iteration.txt").write_text("1")
    lines = [{"step": 0, "data": {"val": 0.5}}, {"step": 1, "data": {"actor/grad_norm": 1.0, "timing_s/gen": 3.0}}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    digests = []
    for uid in ("x", "y"):
        folder = tmp_path / uid
        folder.mkdir()
        rows = [{"input": "q", "output": answer, "gts": "t", "score": 1.0, "uid": uid} for answer in ("a", "b")]
        (folder / "1.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in (rows if uid == "x" else rows[::-1])))
        found = read(tmp_path / "metrics.jsonl", folder, run_folder)
        assert found.metrics == {0: {"val": 0.5}, 1: {"actor/grad_norm": 1.0}}
        digests.append(found.samples)
    assert digests[0] == digests[1]


def test_a_run_without_a_step_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, "data": {"val": 0.5}}))
    with refused(RegressError, "no_training_step", tmp_path / "metrics.jsonl", "[0]"):
        read(tmp_path / "metrics.jsonl", tmp_path, tmp_path)
