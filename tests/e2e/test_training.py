"""The main job, whole: verl's own command trains, checkpoints, goes on from the checkpoint and validates."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from samr1_verl.masks import decode_rle
from samr1_verl.protocols import PixelCounts
from samr1_verl.samples import read_samples

TIMEOUT_S = 900


@pytest.fixture
def train(tmp_path: Path, drawn: Path, warm_policy: Path, small_sam: Path, ray_folder: Path):
    """Runs `python -m verl.trainer.main_ppo +recipe=samr1_tiny` up to a step, elsewhere; returns its output."""

    def run(steps: int) -> str:
        command = [
            *(sys.executable, "-m", "verl.trainer.main_ppo", "+recipe=samr1_tiny"),
            f"trainer.total_training_steps={steps}",
            "trainer.save_freq=2",
            "trainer.test_freq=3",
            "trainer.val_before_train=false",
            f"trainer.default_local_dir={tmp_path / 'run'}",
            f"data.train_files={drawn / 'train.parquet'}",
            f"data.val_files={drawn / 'val.parquet'}",
            f"actor_rollout_ref.model.path={warm_policy}",
            f"samr1.segmenter.path={small_sam}",
            "samr1.service.cache_dir=null",
            f"+ray_kwargs.ray_init._temp_dir={ray_folder}",
        ]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
        return done.stdout + done.stderr

    return run


def test_trains_three_steps_with_a_checkpoint_between(train, tmp_path: Path, warm_policy: Path) -> None:
    train(steps=2)
    assert (tmp_path / "run" / "latest_checkpointed_iteration.txt").read_text() == "2"
    output = train(steps=3)
    assert "global_step_2" in output, "the second run goes on from the first one's checkpoint"

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    for tag in ("reward/score", "reward/acc", "reward/answer/no_answer", "actor/pg_clipfrac_high", "actor/kl_loss"):
        assert sorted(logged[tag]) == [1, 2, 3], tag
    assert max(logged["reward/acc"].values()) > 0.1, "the small SAM found masks"
    assert max(logged["training/rollout_probs_diff_max"].values()) < 1e-4
    assert sorted(logged["val-core/shapes/acc/mean@1"]) == [2, 3], "each start ends with a validation"
    for step, accuracy in logged["val-core/shapes/acc/mean@1"].items():
        assert logged["val-core/shapes/giou/segzero"][step] == pytest.approx(accuracy, abs=1e-6)
        samples = list(read_samples(tmp_path / "run" / "samples" / f"{step}.jsonl"))
        assert len(samples) == 4, "one sentence about each of four scenes"
        for sample in samples:  # the mask that is shown is the one that was paid for
            shown = [decode_rle(one, sample.size) for one in (sample.mask, sample.truth)]
            assert PixelCounts.of(*shown, None).iou("segzero") == pytest.approx(sample.scores["acc"])

    latest = (tmp_path / "run" / "latest_checkpointed_iteration.txt").read_text()
    trained = load_file(tmp_path / "run" / f"global_step_{latest}" / "actor" / "huggingface" / "model.safetensors")
    start = load_file(warm_policy / "model.safetensors")
    assert trained.keys() == start.keys()
    assert any((trained[name] != start[name]).any() for name in start), "the weights moved"
