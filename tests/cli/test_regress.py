"""`samr1 regress` refuses what it cannot compare before anything trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.regress import training
from samr1_verl.regress.golden import Golden, Place
from samr1_verl.regress.training import Run


@pytest.fixture(autouse=True)
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing trains in these tests."""
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("it trains"))


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["regress", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    return " ".join(result.stderr.split())


def test_a_recipe_whose_rollouts_do_not_repeat(tmp_path: Path) -> None:
    message = refused("record", "samr1", "--out", tmp_path / "golden.json")
    assert message.startswith("error: samr1: actor_rollout_ref.rollout.full_determinism is false")
    assert "Add actor_rollout_ref.rollout.full_determinism=true" in message
    assert not (tmp_path / "golden.json").exists()


def test_an_unknown_recipe(tmp_path: Path) -> None:
    assert "samr1_tiny" in refused("record", "samr1_tinny", "--out", tmp_path / "golden.json")


def test_a_file_that_is_no_golden_file(tmp_path: Path) -> None:
    assert "not a golden file" in refused("check", tmp_path / "missing.json")


def test_tolerances_without_repetitions(tmp_path: Path) -> None:
    run = Run(metrics={1: {"loss": 0.1}}, samples={}, weights="w")
    golden = Golden(recipe="samr1_tiny", overrides=[], steps=1, place=Place.here(), run=run, repetitions=[])
    golden.save(tmp_path / "here.json")
    assert "Record it again with --repeat 3" in refused("check", tmp_path / "here.json", "--tolerance")
    golden.place = golden.place.model_copy(update={"processor": "another"})
    golden.save(tmp_path / "far.json")
    message = refused("check", tmp_path / "far.json")
    assert "processor another, now" in message and "--repeat 3" in message
