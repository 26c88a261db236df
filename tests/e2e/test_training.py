"""The main job, whole: verl's own command trains, is killed, resumes, and ends as its golden file."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from samr1_verl.geometry.giou import PROTOCOLS, PixelCounts
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.regress import training
from samr1_verl.regress.golden import Golden, Place, first_difference
from samr1_verl.rehearsal.process import kill, without_a_cluster
from samr1_verl.report.page import report
from samr1_verl.report.run import Run, read_run
from samr1_verl.scoring.sample import Sample, read_samples
from samr1_verl.training.checkpoints import TRACKER
from tests.regress.golden_files import FOLDER, STEPS, furnish
from tests.training_runs import TIMEOUT_S, short_folder

pytestmark = pytest.mark.ray

KILLED_AFTER = 2  # the checkpoint that the second start goes on from


@dataclass(frozen=True)
class Trained:
    """Folders and logs of one training of `samr1_tiny`, as `samr1 regress` trains it."""

    out: Path
    outputs: list[str]  # of its starts

    @property
    def run(self) -> Path:
        return self.out / "run"

    def read(self) -> training.Run:
        """Metrics of every start, digests of the rollouts and of the last weights."""
        whole = self.out / "metrics.jsonl"
        whole.write_text("".join(file.read_text() for file in sorted(self.out.glob("metrics_*.jsonl"))))
        return training.read(whole, self.out / "rollouts", self.run)


class Start:
    """One start of verl's command in a folder like the root of a checkout."""

    def __init__(self, place: Path, out: Path, ray: Path, number: int, *overrides: str) -> None:
        out.mkdir(exist_ok=True)
        metrics = out / f"metrics_{number}.jsonl"
        command = training.command("samr1_tiny", (), STEPS, out, metrics, ray)
        more = (f"trainer.save_freq={KILLED_AFTER}", "trainer.logger=[console,file,tensorboard]", *overrides)
        self.log = out / f"log_{number}.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *more], cwd=place, env=without_a_cluster(), stdout=log, stderr=subprocess.STDOUT
            )

    def finish(self) -> str:
        assert self.process.wait(TIMEOUT_S) == 0, self.log.read_text()[-8000:]
        return self.log.read_text()

    def kill_after(self, tracker: Path, checkpoint: int) -> str:
        """Kill every process of it when verl has named this checkpoint."""
        give_up = time.monotonic() + TIMEOUT_S
        while not (tracker.exists() and tracker.read_text() == str(checkpoint)):
            assert self.process.poll() is None and time.monotonic() < give_up, self.log.read_text()[-8000:]
            time.sleep(0.1)
        kill(self.process)
        return self.log.read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, drawn: Path, small_sam: Path) -> Path:
    return furnish(tmp_path_factory.mktemp("e2e") / "root", drawn, small_sam)


@pytest.fixture(scope="module")
def trained(place: Path) -> Trained:
    """Killed in its third step, and started again."""
    out = place.parent / "killed"
    with short_folder() as first, short_folder() as second:
        outputs = [Start(place, out, first, 1).kill_after(out / "run" / TRACKER, KILLED_AFTER)]
        outputs.append(Start(place, out, second, 2, "trainer.val_before_train=false").finish())
    return Trained(out, outputs)


@pytest.fixture(scope="module")
def logged(trained: Trained) -> dict[str, dict[int, float]]:
    return read_run(trained.run).curves


def test_a_killed_and_resumed_training_ends_as_its_golden_file(trained: Trained) -> None:
    """To the bit where the file was recorded; elsewhere within its repetitions."""
    assert f"global_step_{KILLED_AFTER}" in trained.outputs[1], (
        "the second start goes on from the first one's checkpoint"
    )
    golden = Golden.load(FOLDER / "samr1_tiny.json")
    exact = not golden.place.differences(Place.here())
    assert first_difference(golden, trained.read(), exact) is None


@pytest.mark.thorough
def test_it_ends_as_one_that_was_not_killed(trained: Trained, place: Path) -> None:
    whole = Trained(place.parent / "whole", [])
    with short_folder() as ray:
        Start(place, whole.out, ray, 1).finish()
    assert trained.read() == whole.read()
    last = [training.digest_of_state(one.run / f"global_step_{STEPS}") for one in (trained, whole)]
    assert last[0] == last[1] != training.digest_of_state(trained.run / f"global_step_{KILLED_AFTER}")


def test_every_step_of_both_starts_is_logged_and_the_rollouts_are_the_policys(
    logged: dict[str, dict[int, float]],
) -> None:
    for tag in ("reward/score", "reward/acc", "reward/answer/no_answer", "actor/pg_clipfrac_high", "actor/kl_loss"):
        assert sorted(logged[tag]) == [1, 2, 3], tag
    assert max(logged["reward/acc"].values()) > 0.1, "the small SAM found masks"
    assert max(logged["training/rollout_probs_diff_max"].values()) < 1e-4
    assert set(logged["training/lost_rollouts"].values()) == {0}


def test_the_masks_of_a_validation_are_those_that_were_paid_for(
    trained: Trained, logged: dict[str, dict[int, float]]
) -> None:
    accuracy = logged["val-core/shapes/acc/mean@1"]
    assert sorted(accuracy) == [0, STEPS], "a run ends with a validation"
    for step, mean in accuracy.items():
        assert logged["val-core/shapes/giou/segzero"][step] == pytest.approx(mean, abs=1e-6)
        samples = list(read_samples(trained.run / "samples" / f"{step}.jsonl"))
        assert len(samples) == 4, "one sentence about each of four scenes"
        assert [overlap_of(sample) for sample in samples] == pytest.approx([one.scores["acc"] for one in samples])


def overlap_of(sample: Sample) -> float:
    shown = [decode_rle(one, sample.size) for one in (sample.mask, sample.truth)]
    return PROTOCOLS["segzero"].iou(PixelCounts.of(*shown, None))


def test_the_report_has_every_sentence(trained: Trained) -> None:
    run: Run = read_run(trained.run)
    page, _ = report([run])
    assert sorted(run.samples) == [0, STEPS]
    assert all(sample.sentence in page for sample in run.samples[STEPS])


def test_the_checkpoint_holds_a_model_folder_with_other_weights(trained: Trained, warm_policy: Path) -> None:
    latest = (trained.run / TRACKER).read_text()
    weights = load_file(trained.run / f"global_step_{latest}" / "actor" / "huggingface" / "model.safetensors")
    start = load_file(warm_policy / "model.safetensors")
    assert weights.keys() == start.keys()
    assert any((weights[name] != start[name]).any() for name in start)
