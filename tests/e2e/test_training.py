"""The main job, whole: verl's own command trains, checkpoints, is killed, goes on from the checkpoint and validates."""

import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from samr1_verl.geometry.giou import PROTOCOLS, PixelCounts
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.regress.training import UNREPEATABLE, digest_of_state
from samr1_verl.rehearsal.process import kill, without_a_cluster
from samr1_verl.report.page import report
from samr1_verl.report.run import read_run
from samr1_verl.scoring.sample import read_samples
from samr1_verl.training.checkpoints import TRACKER
from tests.training_runs import TIMEOUT_S, World

SCHEDULE = (
    "trainer.save_freq=2",
    "trainer.test_freq=3",
    "trainer.val_before_train=false",
    "trainer.total_training_steps=3",
)


def train_until_killed(world: World, warm_policy: Path, checkpoint: str) -> None:
    """Start the training, and kill every process of it when verl has named this checkpoint."""
    command = world.command("samr1_tiny", warm_policy, *SCHEDULE)
    tracker = world.run / TRACKER
    with (world.run.parent / "killed.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=world.run.parent, env=without_a_cluster(), stdout=log, stderr=log)
    deadline = time.monotonic() + TIMEOUT_S
    while not (tracker.exists() and tracker.read_text() == checkpoint):
        assert process.poll() is None and time.monotonic() < deadline, (world.run.parent / "killed.log").read_text()
        time.sleep(0.1)
    kill(process)


def repeatable(logged: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    return {tag: values for tag, values in logged.items() if not tag.startswith(UNREPEATABLE)}


def test_a_killed_training_resumes_and_ends_as_one_that_was_not_killed(world: World, warm_policy: Path) -> None:
    whole = replace(world, run=world.run.parent / "whole")
    whole.train("samr1_tiny", warm_policy, *SCHEDULE)
    train_until_killed(world, warm_policy, checkpoint="2")
    output = world.train("samr1_tiny", warm_policy, *SCHEDULE)
    assert "global_step_2" in output, "the second start goes on from the first one's checkpoint"

    assert repeatable(world.logged()) == repeatable(whole.logged())
    last = [digest_of_state(one.run / "global_step_3") for one in (world, whole)]
    assert last[0] == last[1] != digest_of_state(world.run / "global_step_2")

    logged = whole.logged()
    for tag in ("reward/score", "reward/acc", "reward/answer/no_answer", "actor/pg_clipfrac_high", "actor/kl_loss"):
        assert sorted(logged[tag]) == [1, 2, 3], tag
    assert max(logged["reward/acc"].values()) > 0.1, "the small SAM found masks"
    assert max(logged["training/rollout_probs_diff_max"].values()) < 1e-4
    assert sorted(logged["val-core/shapes/acc/mean@1"]) == [3], "a run ends with a validation"
    for step, accuracy in logged["val-core/shapes/acc/mean@1"].items():
        assert logged["val-core/shapes/giou/segzero"][step] == pytest.approx(accuracy, abs=1e-6)
        samples = list(read_samples(world.run / "samples" / f"{step}.jsonl"))
        assert len(samples) == 4, "one sentence about each of four scenes"
        for sample in samples:  # the mask that is shown is the one that was paid for
            shown = [decode_rle(one, sample.size) for one in (sample.mask, sample.truth)]
            assert PROTOCOLS["segzero"].iou(PixelCounts.of(*shown, None)) == pytest.approx(sample.scores["acc"])

    run = read_run(world.run)
    page, _ = report([run])
    assert run.curves["reward/score"] == world.logged()["reward/score"] and sorted(run.samples) == [3]
    assert all(sample.sentence in page for sample in run.samples[3])

    latest = (world.run / "latest_checkpointed_iteration.txt").read_text()
    trained = load_file(world.run / f"global_step_{latest}" / "actor" / "huggingface" / "model.safetensors")
    start = load_file(warm_policy / "model.safetensors")
    assert trained.keys() == start.keys()
    assert any((trained[name] != start[name]).any() for name in start), "the weights moved"
