"""Conversion: in order, on several processes, resumable, atomic, with a list of problems."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from samr1_verl.cli.conversion import FAILED, INTERRUPTED, report_and_exit
from samr1_verl.rows.convert import pipeline
from samr1_verl.rows.convert.options import RunOptions
from samr1_verl.rows.record import DataError, Record, read_table
from tests.errors import refused
from tests.rows.convert.sources import rows_of

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Numbers:
    """A row for each number; writes each call down, fails where told, and finds 3 odd."""

    calls: Path
    stop_at: int = -1
    odd: bool = False
    bad: int = 3

    def __call__(self, job: int) -> tuple[list[Record], list[pipeline.Problem]]:
        if job == self.stop_at:
            raise KeyboardInterrupt
        with self.calls.open("a") as file:
            file.write(f"{job}\n")
        if self.odd and job == self.bad:
            return [], [pipeline.Problem("numbers", f"number {job}", "value", "odd", 1)]
        record = {
            "data_source": "n",
            "sentence": str(job),
            "image": "a.png",
            "sha256": "0" * 64,
            "height": 1,
            "width": 1,
        }
        return [Record.model_validate({**record, "masks": []})], []

    @property
    def seen(self) -> list[int]:
        return [int(line) for line in self.calls.read_text().splitlines()]


def run(folder: Path, function: Numbers, count: int = 10, workers: int = 1, plan: str = "a", strict: bool = False):
    with pipeline.Workspace(folder / ".work", {"plan": plan}) as work:
        options = RunOptions(strict, workers)
        return pipeline.convert(work, folder / "out.parquet", range(count), count, function, options)


def numbers(folder: Path) -> list[int]:
    return [int(row.sentence) for row in rows_of(folder / "out.parquet")]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "PART", 4)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_rows_keep_the_jobs_order_however_many_processes(tmp_path: Path, workers: int) -> None:
    outcome = run(tmp_path, Numbers(tmp_path / "calls"), count=101, workers=workers)
    assert numbers(tmp_path) == list(range(101)) and outcome.rows == 101
    assert {path.name for path in tmp_path.iterdir()} == {"calls", "out.parquet"}, "the work folder is gone"


def test_an_interrupted_run_goes_on_with_the_part_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Numbers(tmp_path / "first", stop_at=6))
    assert not (tmp_path / "out.parquet").exists()
    second = Numbers(tmp_path / "second")
    run(tmp_path, second)
    assert second.seen == [4, 5, 6, 7, 8, 9]
    assert numbers(tmp_path) == list(range(10))


def test_another_plan_starts_afresh(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Numbers(tmp_path / "first", stop_at=6))
    second = Numbers(tmp_path / "second")
    run(tmp_path, second, plan="b")
    assert second.seen == list(range(10))


def test_a_part_with_problems_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Numbers(tmp_path / "first", stop_at=9, odd=True))
    second = Numbers(tmp_path / "second")
    outcome = run(tmp_path, second)
    assert second.seen == [0, 1, 2, 3, 8, 9] and numbers(tmp_path) == list(range(10))
    assert outcome.problems == 0


def test_problems_are_listed_and_counted(tmp_path: Path) -> None:
    outcome = run(tmp_path, Numbers(tmp_path / "calls", odd=True))
    assert (outcome.rows, outcome.left_out, outcome.problems) == (9, 1, 1)
    assert json.loads(outcome.report.read_text())["record"] == "number 3"


def test_strict_stops_at_the_first_problem(tmp_path: Path) -> None:
    function = Numbers(tmp_path / "calls", odd=True)
    with refused(DataError, "problem_found", "--strict: numbers: number 3, field 'value': odd"):
        run(tmp_path, function, strict=True)
    assert function.seen == [0, 1, 2, 3] and not (tmp_path / "out.parquet").exists()


def test_a_file_without_rows_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_text("of an earlier run")
    with refused(DataError, "nothing_converted", tmp_path / "out.parquet", tmp_path / "out.problems.jsonl"):
        run(tmp_path, Numbers(tmp_path / "calls", odd=True, bad=0), count=1)
    assert (tmp_path / "out.parquet").read_text() == "of an earlier run"


def test_two_runs_at_once_do_not_mix(tmp_path: Path) -> None:
    with pipeline.Workspace(work := tmp_path / ".work", {}), refused(DataError, "already_running", work):
        pipeline.Workspace(work, {})


def test_a_full_disk_is_said_and_the_run_goes_on_later(tmp_path: Path, capsys) -> None:
    # The kernel itself refuses: every write to /dev/full fails with "no space left on device".
    full = tmp_path / f".out.parquet.{os.getpid()}.partial"
    full.symlink_to("/dev/full")
    with pytest.raises(typer.Exit) as end:
        report_and_exit(lambda: [run(tmp_path, Numbers(tmp_path / "first"))])
    assert end.value.exit_code == FAILED
    assert "disk is full" in capsys.readouterr().err and not (tmp_path / "out.parquet").exists()
    second = Numbers(tmp_path / "second")
    run(tmp_path, second)
    assert not second.calls.exists(), "the parts were kept"
    assert numbers(tmp_path) == list(range(10))


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk() -> None:
    def fail():
        raise OSError(errno.EACCES, "permission denied")

    with pytest.raises(OSError, match="permission denied"):
        report_and_exit(fail)


SLOW = """
import time, typer
from samr1_verl.cli.conversion import Terminal, report_and_exit
from samr1_verl.rows.convert import pipeline
from samr1_verl.rows.convert.options import RunOptions
from tests.rows.convert.test_pipeline import Numbers, Path
pipeline.PART = 4

class Slow(Numbers):
    def __call__(self, job):
        time.sleep(0.02)
        return super().__call__(job)

if __name__ == "__main__":
    folder = Path({folder!r})
    def run():
        options = RunOptions(workers=2, watcher=Terminal())
        with pipeline.Workspace(folder / ".work", {{}}, options.watcher) as work:
            return [pipeline.convert(work, folder / "out.parquet", range(600), 600, Slow(folder / "calls"), options)]
    typer.run(lambda: report_and_exit(run))
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)])
def test_a_killed_run_resumes_and_its_file_is_the_same(tmp_path: Path, end: signal.Signals) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW.format(folder=str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # the script imports from tests
    command = [sys.executable, str(script)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment)
    deadline = time.monotonic() + 120
    while not list((tmp_path / ".work").glob("out.parquet/000002.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(first.pid, end)  # the whole group, as Ctrl-C in a terminal does
    _, errors = first.communicate(timeout=60)
    assert first.returncode == (INTERRUPTED if end == signal.SIGINT else -end)
    assert end != signal.SIGINT or ("interrupted" in errors and "Traceback" not in errors)
    before = (tmp_path / "calls").read_text().splitlines()
    assert not (tmp_path / "out.parquet").exists() and len(before) < 600
    again = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "an interrupted run" in again.stderr
    assert [int(row["sentence"]) for row in read_table(tmp_path / "out.parquet").to_pylist()] == list(range(600))
    after = (tmp_path / "calls").read_text().splitlines()[len(before) :]
    assert not set(range(12)) & {int(line) for line in after}, "the parts that were there are not made again"
