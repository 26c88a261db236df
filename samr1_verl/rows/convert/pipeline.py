"""What every converter does alike: from a stream of jobs to a parquet file of rows, on all cores.

A job is what belongs to one image; a converter turns it into rows and problems in a worker process. Rows are written in
parts of PART jobs below a hidden work folder, so an interrupted run goes on with the first part that is missing or had
problems. The file appears under its name when all parts are there. What was wrong is listed in NAME.problems.jsonl.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from samr1_verl.rows.parallel import ordered_map
from samr1_verl.rows.record import SCHEMA_VERSION, DataError, Record, concatenate, write_records
from samr1_verl.rows.files import complete

PART = 512  # jobs
SHOWN = 5  # problems printed; the report has all
FAILED, SOME_LEFT_OUT, INTERRUPTED = 1, 3, 130  # exit statuses; 0: every row was written
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Problem:
    """Something in the source that is not as it must be, and how many rows it cost (0: the row was kept without it)."""

    file: str
    record: str
    field: str
    problem: str
    rows: int

    def __str__(self) -> str:
        return f"{self.file}: {self.record}, field {self.field!r}: {self.problem}"


Job = Any  # picklable
Convert = Callable[[Job], tuple[list[Record], list[Problem]]]  # picklable


@dataclass
class Outcome:
    """What became of one file: its rows, the rows left out, the number of problems, and where they are listed."""

    path: Path
    rows: int
    left_out: int
    problems: int
    report: Path


class Workspace:
    """The hidden folder that one run works in and a later run of the same command goes on with. A context manager.

    Args:
        folder: made here, removed when the block ends well.
        plan: everything that decides what the rows will be: options, and size and time of source files. Where the
            folder holds another plan, it is emptied.

    Raises:
        DataError: another process works in the folder.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(folder.with_name(folder.name + ".lock"), "w")  # noqa: SIM115 - held until the block ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{folder}: another run of this command writes here. Wait for it, or end it") from error
        text = json.dumps({**plan, "schema": SCHEMA_VERSION, "part": PART}, sort_keys=True, default=str)
        if (folder / "plan.json").is_file() and (folder / "plan.json").read_text() == text:
            typer.echo(f"{folder}: going on with an interrupted run", err=True)
            return
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "plan.json").write_text(text)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            shutil.rmtree(self.folder)
            Path(self._lock.name).unlink()
        self._lock.close()


def convert(
    work: Workspace, out: Path, jobs: Iterable[Job], total: int | None, function: Convert, strict: bool, workers: int
) -> Outcome:
    """Write the rows of all jobs to `out`, in the jobs' order.

    Args:
        jobs: the same ones in the same order each time the same command runs.
        total: their number, for the progress bar; None: unknown.
        function: rows and problems of one job; runs in a worker process.
        strict: stop at the first problem and write nothing.
        workers: processes; 0: one a core.

    Raises:
        DataError: strict and there is a problem, or no row is left.
    """
    folder = work.folder / out.name
    folder.mkdir(exist_ok=True)
    parts = _Parts(folder)
    with _progress(out.name, total) as advance, ExitStack() as stack:

        def todo() -> Iterator[tuple[int, Job]]:
            for index, job in enumerate(jobs):
                if index % PART == 0:
                    parts.seen.append(index // PART)
                if parts.is_done(index // PART):
                    advance()
                else:
                    yield index // PART, job

        results = stack.enter_context(closing(ordered_map(_Numbered(function), todo(), workers or None)))
        for number, group in groupby(results, key=lambda result: result[0]):
            parts.write(number, _watched(group, strict, advance))
    return parts.join(out)


def _watched(
    results: Iterable[tuple[int, list[Record], list[Problem]]], strict: bool, advance: Callable[[], None]
) -> Iterator[tuple[list[Record], list[Problem]]]:
    for _, records, problems in results:
        if strict and problems:
            raise DataError(f"{problems[0]}. --strict: nothing was written")
        yield records, problems
        advance()


@dataclass
class _Numbered:
    """The function for jobs that carry their part's number."""

    function: Convert

    def __call__(self, numbered: tuple[int, Job]) -> tuple[int, list[Record], list[Problem]]:
        return numbered[0], *self.function(numbered[1])


@dataclass
class _Parts:
    """The parts of one file: NUMBER.parquet, and NUMBER.jsonl beside it where there were problems."""

    folder: Path
    seen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A part with problems is converted again: its images may have been repaired in between.
        finished = {int(path.stem) for path in self.folder.glob("*.parquet")}
        self._done = finished - {int(path.stem) for path in self.folder.glob("*.jsonl")}

    def is_done(self, number: int) -> bool:
        return number in self._done

    def write(self, number: int, results: Iterable[tuple[list[Record], list[Problem]]]) -> None:
        """Write one part from rows and problems, a job at a time."""
        problems: list[Problem] = []
        report = self.folder / f"{number:06d}.jsonl"

        def rows() -> Iterator[Record]:
            for records, found in results:
                problems.extend(found)
                yield from records
            report.unlink(missing_ok=True)
            if problems:  # before the parquet file, whose appearance says that the part is complete
                _write_lines(report, problems)

        write_records(self.folder / f"{number:06d}.parquet", rows())

    def join(self, out: Path) -> Outcome:
        """Make `out` and its report of the parts, or only the report where no row is left."""
        report = out.with_name(f"{out.stem}.problems.jsonl")
        reports = [path for number in self.seen if (path := self.folder / f"{number:06d}.jsonl").is_file()]
        problems = left_out = 0
        if reports:
            with complete(report) as partial, open(partial, "w", encoding="utf-8") as file:
                for part in reports:
                    for line in part.read_text(encoding="utf-8").splitlines():
                        file.write(line + "\n")
                        problems, left_out = problems + 1, left_out + json.loads(line)["rows"]
        else:
            report.unlink(missing_ok=True)
        parts = [self.folder / f"{number:06d}.parquet" for number in self.seen]
        if not any(pq.read_metadata(part).num_rows for part in parts):
            where = f"{report} says why" if problems else "the source holds no sentences for it"
            raise DataError(f"{out}: no row is left; {where}")
        rows = concatenate(out, parts)
        return Outcome(out, rows, left_out, problems, report)


def _write_lines(path: Path, problems: Sequence[Problem]) -> None:
    with complete(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(problem)) + "\n" for problem in problems)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        # rich's own speed is that of the last moments, and results come in bursts
        return Text(f"{task.completed / task.elapsed:,.1f} images/s" if task.elapsed else "")


@contextmanager
def _progress(name: str, total: int | None) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total)
        yield lambda: progress.advance(task)


def stamp(path: Path) -> list[Any]:
    """What tells a source file from a changed one, for a Workspace's plan. Raises DataError where it is missing."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. Correct the option, or unpack the data set there")
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def report_and_exit(run: Callable[[], Sequence[Outcome]]) -> None:
    """Run a converter, print what became of each file, and end with the status that says so."""
    try:
        outcomes = run()
    except DataError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(INTERRUPTED) from error
    except (OSError, sqlite3.OperationalError) as error:
        if not (getattr(error, "errno", None) in _FULL or "disk is full" in str(error)):
            raise
        typer.echo(
            f"error: the disk is full ({error}). Make room; the same command then goes on where this one stopped",
            err=True,
        )
        raise typer.Exit(FAILED) from error
    except BrokenProcessPool as error:
        typer.echo(
            "error: a worker process was killed, as happens when memory runs out. Type the same command with fewer "
            "--workers; it goes on where this one stopped",
            err=True,
        )
        raise typer.Exit(FAILED) from error
    for outcome in outcomes:
        typer.echo(f"{outcome.path}: {outcome.rows} rows")
        if outcome.problems:
            counts = f"problems: {outcome.problems}, rows left out: {outcome.left_out}"
            typer.echo(f"  {counts}; all in {outcome.report}, the first:")
            with open(outcome.report, encoding="utf-8") as file:
                for _, line in zip(range(SHOWN), file, strict=False):
                    typer.echo(f"  {Problem(**json.loads(line))}")
    if any(outcome.problems for outcome in outcomes):
        raise typer.Exit(SOME_LEFT_OUT)
