"""`samr1 rehearse` with verl's vLLM server as the rollout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from samr1_verl.rehearsal.process import without_a_cluster
from tests.vllm.settings import ROLLOUT

ROOT = Path(__file__).resolve().parents[2]
# Small images and short answers, so that the check takes little time; at its own sizes a recipe takes some minutes.
SMALL = ("data.max_response_length=150", f"{ROLLOUT}.n=4", f"{ROLLOUT}.name=vllm")


@pytest.mark.parametrize(("recipe", "side"), [("samr1", 168), ("star", 256)])
def test_a_gpu_recipe_is_rehearsed_with_vllm(recipe: str, side: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "samr1_verl.cli", "rehearse", recipe, f"samr1.policy_size=[{side},{side}]", *SMALL]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, env=without_a_cluster(), capture_output=True, text=True,
        timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] and result["weight_updates"] and result["resume"]
    assert f"{ROLLOUT}.enforce_eager" in result["replaced"] and f"{ROLLOUT}.name" not in result["replaced"]
