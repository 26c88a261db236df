"""`samr1 rehearse` as a reader types it: two starts of verl's own command, and a verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.rehearsal.process import without_a_cluster

ROOT = Path(__file__).resolve().parents[2]
# The recipes' geometry with small images and short answers, so that the test takes little time.
SMALL = ("data.max_response_length=150", "actor_rollout_ref.rollout.n=4")
BROKEN = "def compute_score(**_):\n    raise RuntimeError('the reward is broken')\n"


def rehearse(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "samr1_verl.cli", "rehearse", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=without_a_cluster(), capture_output=True, text=True, timeout=1500, check=False
    )


@pytest.mark.ray
@pytest.mark.parametrize(("recipe", "side"), [("samr1", 168), pytest.param("star", 256, marks=pytest.mark.thorough)])
def test_a_gpu_recipe_is_rehearsed_without_a_gpu(recipe: str, side: int, tmp_path: Path) -> None:
    done = rehearse(recipe, f"samr1.policy_size=[{side},{side}]", *SMALL, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] and result["rewards"] and result["gradients"] and result["weight_updates"] and result["resume"]
    assert result["peak_gb"] > 1 and result["wall_s"] > 10
    assert "actor_rollout_ref.model.path" in result["replaced"] and "samr1.segmenter.path" in result["replaced"]
    assert any("GPU" in item for item in result["not_covered"])
    assert "seen: weight updates" in done.stdout and "not covered:" in done.stdout


@pytest.mark.ray
@pytest.mark.thorough
def test_a_training_that_ends_with_an_error_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    done = rehearse(
        "samr1_tiny", f"reward.custom_reward_function.path={tmp_path / 'broken.py'}", "--out", str(tmp_path / "out")
    )
    assert done.returncode == 1
    assert "the reward is broken" in done.stderr
    assert "exit status" in done.stderr and str(tmp_path / "out" / "train.log") in done.stderr


def test_an_unknown_recipe_is_named_with_the_known_ones() -> None:
    done = CliRunner().invoke(app, ["rehearse", "samr2"])
    assert done.exit_code == 1 and "recipe 'samr2'" in done.stderr and "samr1_refine" in done.stderr


def test_a_folder_with_something_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("kept")
    done = CliRunner().invoke(app, ["rehearse", "samr1", "--out", str(tmp_path)])
    assert done.exit_code == 1 and f"--out: {tmp_path} exists" in done.stderr
    assert (tmp_path / "run" / "mine.txt").read_text() == "kept"
