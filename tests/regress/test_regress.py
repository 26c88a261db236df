"""`samr1 regress check` catches what changes a training, and tolerates another rounding where it has to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.regress.commands import regress
from tests.regress.golden_files import FOLDER, furnish

pytestmark = [pytest.mark.ray, pytest.mark.thorough]

CHANGES = Path(__file__).with_name("changes.py")
# A learning rate at which the second update of a step clips many tokens.
RECORD = ("record", "samr1_tiny", "actor_rollout_ref.actor.optim.lr=1e-3", "--steps=1", "--repeat=0")
THREADS = "ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, drawn: Path, small_sam: Path) -> Path:
    """A folder with a recording of one step, golden.json."""
    folder = furnish(tmp_path_factory.mktemp("regress") / "root", drawn, small_sam)
    assert len(regress(folder, *RECORD)["weights"]) == 64
    return folder


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
    ("change", "step", "first"),
    [
        (["samr1.reward.terms.seg=1.01"], 0, "val-"),
        (["actor_rollout_ref.actor.clip_ratio_high=0.28"], 1, "actor/"),
        (
            [f"trainer.v1.sampler.custom_sampler.path={CHANGES}", "trainer.v1.sampler.custom_sampler.name=OtherOrder"],
            1,
            "actor/",
        ),
        (
            [
                f"reward.custom_reward_function.path={CHANGES}",
                "reward.custom_reward_function.name=fails_once",
                "samr1.max_lost_share=0.5",
            ],
            1,
            "actor/",
        ),
    ],
    ids=["reward", "clip range", "order", "lost rollout"],
)
def test_a_change_is_caught_with_its_step_and_metric(place: Path, change: list[str], step: int, first: str) -> None:
    result = regress(place, "check", "golden.json", *change, status=1)
    assert not result["ok"] and result["comparison"] == "exact"
    assert result["step"] == step and result["name"].startswith(first), result
    assert result["recorded"] != result["found"]


def test_another_segmenter_is_caught(place: Path, tmp_path: Path, small_sam: Path) -> None:
    other = f"samr1.segmenter.path={other_segmenter(tmp_path / 'sam', small_sam)}"
    result = regress(place, "check", "golden.json", other, status=1)
    assert result["step"] <= 1 and result["recorded"] != result["found"], result


def test_the_same_training_elsewhere_lies_within_the_repetitions(place: Path) -> None:
    """Another number of threads rounds otherwise, as another processor does."""
    golden = str(FOLDER / "samr1_tiny.json")
    assert regress(place, "check", golden, "--tolerance", f"{THREADS}='1'") == {"ok": True, "comparison": "tolerance"}
