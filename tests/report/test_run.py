"""What is read from a run's folder, and what `samr1 report` says where it cannot."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from torch.utils.tensorboard import SummaryWriter
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.report.page import report
from samr1_verl.report.run import RunError, read_curves, read_run
from samr1_verl.scoring.sample import write_samples
from tests.errors import refused


def write(folder, values):
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for step, value in values.items():
            writer.add_scalar("reward/score", value, step)


def command(*words):
    return CliRunner().invoke(app, ["report", *map(str, words)])


def test_a_run_that_was_started_again_counts_the_later_value_of_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_000_000)
    write(tmp_path, {1: 0.5, 2: 1.5, 3: 2.5})
    monkeypatch.setattr("time.time", lambda: 2_000_000)
    write(tmp_path, {2: 9.0, 3: 10.0, 4: 11.0})
    assert read_curves(tmp_path) == {"reward/score": {1: 0.5, 2: 9.0, 3: 10.0, 4: 11.0}}


def test_no_value_is_left_out_of_a_long_run(tmp_path):
    write(tmp_path, {step: step / 8 for step in range(1, 12_001)})
    assert read_curves(tmp_path)["reward/score"] == {step: step / 8 for step in range(1, 12_001)}


def test_a_log_that_was_cut_off_gives_what_it_holds(tmp_path):
    write(tmp_path, {step: 0.5 for step in range(1, 101)})
    (log,) = (tmp_path / "tensorboard").iterdir()
    log.write_bytes(log.read_bytes()[:-30])
    assert list(read_curves(tmp_path)["reward/score"]) == list(range(1, 100))


def test_a_value_that_is_no_number_is_a_gap(tmp_path):
    write(tmp_path, {1: 0.5, 2: math.nan, 3: math.inf, 4: 1.0})
    page, _ = report([read_run(tmp_path)])
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["runs"][0]["curves"]["reward/score"] == [[1, 2, 3, 4], [0.5, None, None, 1.0]]


@pytest.mark.parametrize("steps", [[10, 9, 100]])
def test_steps_are_ordered_as_numbers(run, tmp_path, steps):
    for step in steps:
        write_samples(run.samples[1], tmp_path / "samples" / f"{step}.jsonl")
    assert list(read_run(tmp_path).samples) == sorted(steps)


def test_the_command_writes_one_file_and_says_so(run, tmp_path):
    out = tmp_path / "deep" / "page.html"
    done = command(run.folder, "--compare", run.folder, "--out", out)
    assert done.exit_code == 0 and "24 samples of 4 steps" in done.output and str(out) in done.output
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_a_folder_without_a_run_is_an_error(tmp_path):
    done = command(tmp_path / "nothing")
    assert done.exit_code == 1 and f"error: {tmp_path / 'nothing'}: " in done.output
    done = command(tmp_path)
    assert done.exit_code == 1 and f"error: {tmp_path}: " in done.output and "trainer.logger" in done.output
    assert not (tmp_path / "report.html").exists()
    SummaryWriter(str(tmp_path / "tensorboard")).close()  # a run that was stopped before its first step
    assert command(tmp_path).exit_code == 1


def test_a_broken_sample_is_named_by_file_and_line(run, tmp_path):
    folder = tmp_path / "samples"
    write_samples(run.samples[1], folder / "16.jsonl")
    with (folder / "16.jsonl").open("a") as file:
        file.write('{"index": 1')
    done = command(tmp_path)
    assert done.exit_code == 1 and "16.jsonl: line 7" in done.output


def test_a_mask_that_does_not_decode_is_an_error(run, tmp_path):
    broken = [one.model_copy(update={"mask": "zz"}) for one in run.samples[1]]
    write_samples(broken, tmp_path / "samples" / "1.jsonl")
    done = command(tmp_path)
    assert done.exit_code == 1 and "error: " in done.output and "RLE" in done.output


def test_a_file_that_is_not_named_after_a_step_is_an_error(run, tmp_path):
    write_samples(run.samples[1], tmp_path / "samples" / "last.jsonl")
    with refused(RunError, "no_step_name", f"{tmp_path / 'samples' / 'last.jsonl'}: ", "16.jsonl"):
        read_run(tmp_path)


def test_images_that_are_gone_or_changed_are_named_and_the_page_is_written(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    first, second = run.samples[1][:2]
    changed = tmp_path / "changed.jpg"
    changed.write_bytes(b"another file")
    lines = [first.model_copy(update={"image": str(changed)}), second.model_copy(update={"image": "gone.jpg"})]
    shutil.rmtree(tmp_path / "run" / "samples")
    write_samples(lines, tmp_path / "run" / "samples" / "1.jsonl")
    done = command(tmp_path / "run")
    assert done.exit_code == 0
    assert f"image not shown: {changed}" in done.output and "image not shown: gone.jpg" in done.output


def test_without_tensorboard_the_error_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr("samr1_verl.report.run.importlib.util.find_spec", lambda name: None)
    with refused(RunError, "not_installed", "tensorboard", "samr1-verl[report]"):
        read_run(run.folder)
