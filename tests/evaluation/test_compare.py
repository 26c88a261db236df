"""`samr1 compare`: difference, interval and test against enumerations written here; error rates on simulated pairs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import compare_power
from samr1_verl.cli import app
from samr1_verl.evaluation.compare import compare, difference, sums_of
from samr1_verl.evaluation.pairs import read_pairs
from samr1_verl.evaluation.run import results_of, store_results
from samr1_verl.geometry.giou import PROTOCOLS
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.record import DataError
from samr1_verl.scoring.sample import Sample, write_samples
from tests.errors import refused
from tests.evaluation.samples import SIZE, sample_of, samples_of

SIDES = {
    "a": [20, 4, 0, 9, 16, 12, 3, 18, 10, 7, 1, 13, 5, 20],
    "b": [18, 16, 9, 9, 20, 10, 20, 19, 2, 12, 6, 0, 11, 20],
}


def stored(folder: Path, samples: list[Sample]) -> Path:
    """The folder of a finished evaluation."""
    write_samples(samples, folder / "predictions.jsonl")
    store_results(results_of(samples, "lisa", 0, {}), folder)
    return folder


def compared(per_image: int = 2) -> dict[str, Any]:
    a, b = (samples_of(SIDES[side], per_image) for side in "ab")
    return compare(list(zip(a, b, strict=True)), "segzero", seed=0, rows=3)


def figure(columns: np.ndarray, name: str) -> float:
    """The predicted mask is a part of the true mask, of 200 pixels: the union is the true mask."""
    return float(np.mean(columns / 20)) if name == "giou" else float((10 * columns).sum() / (200 * len(columns)))


@pytest.mark.parametrize("name", ["giou", "ciou"])
def test_p_is_the_share_of_all_exchanges_of_whole_images(name: str) -> None:
    a, b = (np.array(SIDES[side]) for side in "ab")
    observed = figure(b, name) - figure(a, name)
    extremes = []
    for signs in itertools.product([False, True], repeat=len(a) // 2):
        exchanged = np.repeat(signs, 2)  # both sentences about an image
        one, other = np.where(exchanged, b, a), np.where(exchanged, a, b)
        extremes.append(abs(figure(other, name) - figure(one, name)) >= abs(observed) - 1e-12)
    found = compared()[name]
    assert found["difference"] == pytest.approx(observed) and found["p"] == pytest.approx(np.mean(extremes))


def test_the_interval_is_that_of_all_resamples_of_images() -> None:
    a, b = (np.array(SIDES[side][:10]).reshape(5, 2) for side in "ab")
    every = [
        figure(b[list(chosen)].ravel(), "giou") - figure(a[list(chosen)].ravel(), "giou")
        for chosen in itertools.product(range(5), repeat=5)
    ]
    sides = [sums_of(samples_of(SIDES[side][:10], 2), PROTOCOLS["segzero"])["giou"] for side in "ab"]
    found = difference(*sides, seed=0)
    assert found.interval == pytest.approx(np.percentile(every, [0.5, 99.5]), abs=0.02)
    assert difference(*sides, seed=0) == found


def test_ciou_weighs_images_by_their_pixels() -> None:
    sums = compare_power.simulate(200, 0.0, 0.0, np.random.default_rng(0))
    for name in ("giou", "ciou"):
        numerators, denominators = sums[0][name]
        assert difference(sums[0][name], sums[1][name], 0, 999).a == pytest.approx(
            numerators.sum() / denominators.sum()
        )


def test_figures_are_those_of_the_evaluations_and_rows_are_ordered_by_their_change() -> None:
    found = compared()
    for side in "ab":
        results = results_of(samples_of(SIDES[side], 2), "segzero", 0, {})
        assert {name: found[name][side] for name in ("giou", "ciou")} == {k: results[k] for k in ("giou", "ciou")}
    moves = [(b - a) / 20 for a, b in zip(SIDES["a"], SIDES["b"], strict=True)]
    assert (found["better"], found["worse"], found["alike"]) == (8, 4, 2)
    assert [row["row"] for row in found["changed"]] == [6, 11, 1]
    assert [row["change"] for row in found["changed"]] == pytest.approx([moves[6], moves[11], moves[1]])
    assert found["changed"][1]["reason_b"] == "no_answer" and found["changed"][1]["reason_a"] is None
    assert (found["rows"], found["images"]) == (14, 7)


def test_an_evaluation_equals_itself_and_one_image_says_nothing() -> None:
    a = samples_of(SIDES["a"])
    same = compare(list(zip(a, a, strict=True)), "lisa", 0, 5)
    assert same["giou"]["interval"] == (0, 0) and same["giou"]["p"] == 1 and not same["giou"]["found"]
    assert same["changed"] == [] and same["alike"] == len(a)
    one = compare(list(zip(samples_of([3, 4], 2), samples_of([9, 9], 2), strict=True)), "lisa", 0, 5)
    assert one["giou"]["interval"] is None and one["giou"]["p"] is None and not one["giou"]["found"]


def test_equal_policies_raise_few_false_alarms() -> None:
    shares = compare_power.line(200, 100, 0.5, 0.0, 999, seed=0)
    assert shares["either"] <= 0.05


def test_a_true_difference_is_found_and_has_its_sign() -> None:
    shares = compare_power.line(20, 1000, 0.8, 0.04, 999, seed=0)
    assert shares["better"] >= 0.9


def test_the_simulated_difference_is_the_one_asked_for() -> None:
    a, b = compare_power.simulate(400_000, 0.5, 0.02, np.random.default_rng(0))
    gap = b["giou"].numerator.sum() / 400_000 - a["giou"].numerator.sum() / 400_000
    assert gap == pytest.approx(0.02, abs=0.003)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "sentence": ({"sentence": "another"}, "'another'"),
    "image digest": ({"sha256": "f" * 64}, "'ffff"),
    "data source": ({"data_source": "other"}, "'other'"),
    "mask of ignored pixels": ({"ignore": samples_of([1])[0].mask}, repr(samples_of([1])[0].mask)),
}


def test_rows_that_the_protocol_leaves_out_count_on_neither_side() -> None:
    empty = encode_rle(np.zeros(SIZE, dtype=bool))
    nothing = {"truth": empty, "mask": empty, "reason": "no_target"}
    a = [*samples_of([10, 5, 20]), sample_of(3, 0, **nothing)]
    b = [*samples_of([12, 5, 10]), sample_of(3, 20, truth=empty)]
    found = compare(list(zip(a, b, strict=True)), "segzero_scripts", 0, 9)
    assert found["giou"]["a"] == pytest.approx((0.5 + 0.25 + 1) / 3)
    assert found["giou"]["b"] == pytest.approx((0.6 + 0.25 + 0.5 + 0) / 4)
    assert (found["better"], found["worse"], found["alike"]) == (1, 1, 2)
    assert [row["row"] for row in found["changed"]] == [2, 0]


@pytest.mark.parametrize("name", CHANGES)
def test_other_rows_are_refused_and_the_first_is_named(name: str, tmp_path: Path) -> None:
    a, b = samples_of(SIDES["a"]), samples_of(SIDES["b"])
    changes, found = CHANGES[name]
    for row in (2, 5):
        b[row] = b[row].model_copy(update=changes)
    with refused(DataError, "row_differs", f"{tmp_path / 'b'}: row 2: ", name, found, tmp_path / "a"):
        read_pairs(stored(tmp_path / "a", a), stored(tmp_path / "b", b))


def test_another_true_mask_and_other_numbers_of_rows_are_refused(tmp_path: Path) -> None:
    a, b = samples_of(SIDES["a"]), samples_of(SIDES["b"])
    folder = stored(tmp_path / "a", a)
    b[3] = b[3].model_copy(update={"truth": b[1].mask})
    with refused(DataError, "row_differs", f"{tmp_path / 'b'}: row 3: ", "true mask", folder):
        read_pairs(folder, stored(tmp_path / "b", b))
    for first, second in (("a", "fewer"), ("fewer", "a")):
        stored(tmp_path / "fewer", a[:9])
        with refused(DataError, "missing_row", f"{tmp_path / 'fewer'}: row 9 ", f"{folder} ", "4 rows more"):
            read_pairs(tmp_path / first, tmp_path / second)
    with refused(DataError, "two_predictions", f"{tmp_path / 'twice'}: row 0 "):
        read_pairs(folder, stored(tmp_path / "twice", [*a, a[0]]))


def test_what_is_no_finished_evaluation_is_refused(tmp_path: Path) -> None:
    folder = stored(tmp_path / "a", samples_of([3, 4]))
    with refused(DataError, "no_such_file", tmp_path / "none"):
        read_pairs(folder, tmp_path / "none")
    (folder / "results.json").unlink()
    with refused(DataError, "unfinished_evaluation", folder, "results.json", "samr1 eval"):
        read_pairs(folder, folder)
    assert len(read_pairs(folder / "predictions.jsonl", folder / "predictions.jsonl")) == 2
    (tmp_path / "empty.jsonl").write_text("")
    with refused(DataError, "no_predictions", tmp_path / "empty.jsonl"):
        read_pairs(folder / "predictions.jsonl", tmp_path / "empty.jsonl")
    unknown = [sample.model_copy(update={"truth": None}) for sample in samples_of([3])]
    write_samples(unknown, tmp_path / "boxes.jsonl")
    with refused(DataError, "no_true_mask", f"{tmp_path / 'boxes.jsonl'}: row 0 "):
        read_pairs(tmp_path / "boxes.jsonl", tmp_path / "boxes.jsonl")


def test_predictions_without_pixel_counts_are_counted(tmp_path: Path) -> None:
    a, b = samples_of(SIDES["a"]), samples_of(SIDES["b"])
    bare = [sample.model_copy(update={"scores": {"score": 1.0}}) for sample in a]
    write_samples(bare, tmp_path / "bare.jsonl")
    pairs = read_pairs(tmp_path / "bare.jsonl", stored(tmp_path / "b", b))
    whole = read_pairs(stored(tmp_path / "a", a), tmp_path / "b")
    assert compare(pairs, "lisa", 0, 9) == compare(whole, "lisa", 0, 9)


def test_the_command_prints_and_stores_the_comparison(tmp_path: Path) -> None:
    a, b = (stored(tmp_path / side, samples_of(SIDES[side], 2)) for side in "ab")
    arguments = ["compare", str(a), str(b), "--protocol", "segzero", "--rows", "3", "--json", str(tmp_path / "c.json")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "c.json").read_text())
    assert content == {"a": str(a), "b": str(b), **json.loads(json.dumps(compared()))}
    assert json.loads(done.output.splitlines()[-1]) == {k: v for k, v in content.items() if k != "changed"}
    assert "8 better, 4 worse, 2 alike" in done.output and "not found" in done.output
    assert f"{content['giou']['difference']:+.4f}" in done.output and "sentence 11" in done.output
    failed = CliRunner().invoke(app, ["compare", str(a), str(tmp_path / "none")])
    assert failed.exit_code == 1 and failed.output.startswith(f"error: {tmp_path / 'none'}: ")
