"""`samr1 data difficulty` with the tiny policy and the small SAM."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.rows.check import Problem, check_files
from samr1_verl.rows.record import count_rows, read_table
from tests.cli.test_evaluate import options
from tests.row_files import make_record, write_rows

__all__ = ["options"]  # a fixture


def difficulty(*arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "difficulty", *map(str, arguments)])
    return done.exit_code, re.sub(r"\s+", " ", done.output).strip() if done.exit_code else done.output


@pytest.mark.slow
def test_columns_tables_and_the_last_line_agree(options: list[str], drawn: Path, tmp_path: Path) -> None:
    file, out = drawn / "test.parquet", tmp_path / "out"
    arguments = [file, *options, "--out", out, "--samples", "4", "--group", "2", "--limit", "4"]
    status, output = difficulty(*arguments)
    assert status == 0, output
    found = json.loads(output.splitlines()[-1])
    assert found == json.loads((out / "results.json").read_text())
    assert (found["rows"], found["samples"], found["group"], found["kept"]) == (4, 4, 2, None)
    assert found["settings"]["policy"]["temperature"] == 1.0, "that of the recipe's rollouts"
    assert found["settings"]["reward"]["path"] == "pkg://reward_fns.samr1"
    assert list(found["tiers"]) == ["0.5", "0.7", "0.8"], "the recipe's"
    rates, chances = (read_table(out / "rows.parquet")[name].to_numpy() for name in ("success_rate", "gradient_chance"))
    assert found["success_rate"] == found["tiers"]["0.5"]["success_rate"] == rates.mean()
    assert found["gradient_chance"] == chances.mean() and set(rates * 4) <= {0, 1, 2, 3, 4}
    assert "groups of 2 with a gradient, expected: " in output and "rows by success rate" in output
    assert [problem for problem in check_files([out / "rows.parquet"], 1) if isinstance(problem, Problem)] == []
    assert not (out / "kept.parquet").exists()

    low, high = rates.min(), rates.min() + 0.1
    status, output = difficulty(*arguments, "--keep", f"{low}..{high}")
    assert status == 0, output
    kept = json.loads(output.splitlines()[-1])["kept"]
    assert kept["rows"] == count_rows(out / "kept.parquet") == (rates <= high).sum()
    assert kept["sources"]["shapes"] == {"kept": kept["rows"], "below": 0, "above": 4 - kept["rows"]}
    assert f"{kept['rows']} of 4 rows kept" in output and str(out / "kept.parquet") in output

    (tmp_path / "before").write_bytes((out / "rows.parquet").read_bytes())
    status, output = difficulty(*arguments, "--keep", "0.999..0.9999")
    assert status == 1 and "no row is left: the success rates of 4 rows are" in output
    assert (tmp_path / "before").read_bytes() == (out / "rows.parquet").read_bytes()
    status, output = difficulty(*arguments, "--samples", "5")
    assert status == 0 and json.loads(output.splitlines()[-1])["samples"] == 5
    assert len(list((out / "answers").iterdir())) == 5 and not (out / "kept.parquet").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--keep", "0.9..0.1"], "--keep: found '0.9..0.1', expected LOW..HIGH"),
        (
            ["--samples", "4"],
            "--samples: found 4, expected at least 8, the answers of a group (actor_rollout_ref.rollout.n)",
        ),
        (["--samples", "4", "--group", "5"], "expected at least 5, the answers of a group (--group)"),
        (["--set", "actor_rollout_ref.rollout.n=1"], "actor_rollout_ref.rollout.n: found 1, expected at least 2"),
        (["--temperature", "0"], "--temperature: found 0 with --samples 16, expected more than 0"),
        (["--set", "actor_rollout_ref.rollout.temperature=0"], "actor_rollout_ref.rollout.temperature: found 0"),
        (["--set", "reward.custom_reward_function.path=null"], "reward.custom_reward_function.path: found None"),
        (["--policy", "/none/there"], "no such folder. Name a model folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_asked(
    arguments: list[str], named: str, options: list[str], drawn: Path, tmp_path: Path
) -> None:
    status, output = difficulty(drawn / "test.parquet", *options, *arguments, "--out", tmp_path / "out")
    assert status == 1 and output.startswith("error: ") and named in output, output
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_measured_are_named(options: list[str], tmp_path: Path) -> None:
    file = write_rows(tmp_path / "boxes" / "rows.parquet", make_record(tmp_path, masks=[], boxes=[[1, 1, 9, 9]]))
    status, output = difficulty(file, *options, "--out", tmp_path / "out")
    assert status == 1 and "row 0: holds 1 boxes and no mask" in output
    sound = write_rows(tmp_path / "sound" / "rows.parquet")
    status, output = difficulty(sound, *options, "--out", sound.parent)
    assert status == 1 and "would be replaced. Choose another --out" in output
    assert "no such data file" in difficulty(tmp_path / "none.parquet", *options, "--out", tmp_path / "out")[1]


def test_a_policy_that_answers_nothing_is_named(
    options: list[str], random_policy: Path, drawn: Path, tmp_path: Path
) -> None:
    few = ["--samples", "2", "--group", "2", "--limit", "2", "--policy", random_policy]
    status, output = difficulty(drawn / "test.parquet", *options, *few, "--out", tmp_path / "out")
    assert status == 1 and "none of the 4 answers is usable: " in output and "samr1.prompt" in output
    assert not (tmp_path / "out" / "rows.parquet").exists()
