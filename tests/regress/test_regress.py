"""`samr1 regress` as its users type it: a step of the tiny recipe is recorded, and changes are caught."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training_runs import without_a_cluster

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

ROOT = Path(__file__).resolve().parents[2]
CHANGES = ROOT / "tests" / "regress" / "changes.py"


def regress(*arguments: object) -> tuple[int, str, dict]:
    """Exit status, output, and the object in its last line."""
    command = [sys.executable, "-m", "samr1_verl.cli", "regress", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=without_a_cluster(), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode in (0, 1) and done.stdout, done.stdout[-4000:] + done.stderr[-4000:]
    return done.returncode, done.stdout, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory, drawn: Path, small_sam: Path) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    overrides = [
        f"data.train_files={drawn / 'train.parquet'}",
        f"data.val_files={drawn / 'val.parquet'}",
        "data.val_max_samples=4",
        f"samr1.segmenter.path={small_sam}",
        "samr1.segmenter.service.cache_dir=null",
    ]
    options = ["--steps", 1, "--repeat", 0, "--out", folder / "golden.json", "--work", folder / "record"]
    status, output, result = regress("record", "samr1_tiny", *overrides, *options)
    assert status == 0 and len(result["weights"]) == 64, output
    return folder / "golden.json"


def check(golden: Path, tmp_path: Path, *overrides: object) -> tuple[int, dict]:
    status, output, result = regress("check", golden, *overrides, "--work", tmp_path / "check")
    assert "comparison: exact" in output
    return status, result


def test_the_same_run_is_as_recorded(golden: Path, tmp_path: Path) -> None:
    assert check(golden, tmp_path) == (0, {"ok": True, "comparison": "exact"})


def other_segmenter(folder: Path, small_sam: Path) -> Path:
    """The small SAM with other values in 4 kB of its decoder's weights, which fill the middle of its file."""
    folder.mkdir()
    (folder / "encoder.onnx").symlink_to(small_sam / "encoder.onnx")
    content = bytearray((small_sam / "sam.onnx").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(byte ^ 1 for byte in content[middle : middle + 4096])
    (folder / "sam.onnx").write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (["samr1.reward.terms.seg=1.01"], "val-"),
        (["actor_rollout_ref.actor.clip_ratio_high=0.28"], "actor/"),
        (
            [f"trainer.v1.sampler.custom_sampler.path={CHANGES}", "trainer.v1.sampler.custom_sampler.name=OtherOrder"],
            "actor/",
        ),
        (
            [
                f"reward.custom_reward_function.path={CHANGES}",
                "reward.custom_reward_function.name=fails_once",
                "samr1.max_lost_share=0.5",
            ],
            "",
        ),
    ],
    ids=["reward", "clip range", "order", "lost rollout"],
)
def test_a_change_is_caught_with_its_step_and_metric(
    golden: Path, tmp_path: Path, change: list[str], first: str
) -> None:
    status, result = check(golden, tmp_path, *change)
    assert status == 1 and not result["ok"] and result["name"].startswith(first), result
    assert result["recorded"] != result["found"]


def test_another_segmenter_is_caught(golden: Path, tmp_path: Path, small_sam: Path) -> None:
    status, result = check(golden, tmp_path, f"samr1.segmenter.path={other_segmenter(tmp_path / 'sam', small_sam)}")
    assert status == 1 and not result["ok"], result
