"""The main job, whole: verl's own command trains, checkpoints, goes on from the checkpoint and validates."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.report.page import report
from samr1_verl.report.run import read_run
from samr1_verl.scoring.sample import read_samples
from tests.training_runs import World

SCHEDULE = ("trainer.save_freq=2", "trainer.test_freq=3", "trainer.val_before_train=false")


def test_trains_three_steps_with_a_checkpoint_between(world: World, warm_policy: Path) -> None:
    world.train("samr1_tiny", warm_policy, *SCHEDULE, "trainer.total_training_steps=2")
    assert (world.run / "latest_checkpointed_iteration.txt").read_text() == "2"
    output = world.train("samr1_tiny", warm_policy, *SCHEDULE, "trainer.total_training_steps=3")
    assert "global_step_2" in output, "the second run goes on from the first one's checkpoint"

    logged = world.logged()
    for tag in ("reward/score", "reward/acc", "reward/answer/no_answer", "actor/pg_clipfrac_high", "actor/kl_loss"):
        assert sorted(logged[tag]) == [1, 2, 3], tag
    assert max(logged["reward/acc"].values()) > 0.1, "the small SAM found masks"
    assert max(logged["training/rollout_probs_diff_max"].values()) < 1e-4
    assert sorted(logged["val-core/shapes/acc/mean@1"]) == [2, 3], "each start ends with a validation"
    for step, accuracy in logged["val-core/shapes/acc/mean@1"].items():
        assert logged["val-core/shapes/giou/segzero"][step] == pytest.approx(accuracy, abs=1e-6)
        samples = list(read_samples(world.run / "samples" / f"{step}.jsonl"))
        assert len(samples) == 4, "one sentence about each of four scenes"
        for sample in samples:  # the mask that is shown is the one that was paid for
            shown = [decode_rle(one, sample.size) for one in (sample.mask, sample.truth)]
            assert PixelCounts.of(*shown, None).iou("segzero") == pytest.approx(sample.scores["acc"])

    run = read_run(world.run)
    page, _ = report([run])
    assert run.curves["reward/score"] == logged["reward/score"] and sorted(run.samples) == [2, 3]
    assert all(sample.sentence in page for sample in run.samples[3])

    latest = (world.run / "latest_checkpointed_iteration.txt").read_text()
    trained = load_file(world.run / f"global_step_{latest}" / "actor" / "huggingface" / "model.safetensors")
    start = load_file(warm_policy / "model.safetensors")
    assert trained.keys() == start.keys()
    assert any((trained[name] != start[name]).any() for name in start), "the weights moved"
