"""The part that all converters share: a stream of jobs becomes a parquet file of rows, on all cores.

A job is all that belongs to one image. A converter turns it into rows and problems, in a worker process. Rows are
written in parts of PART jobs below a hidden work folder. An interrupted run therefore resumes at the first part that is
missing or had problems. The parquet file appears under its name when all parts are complete. NAME.problems.jsonl lists
the problems.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from samr1_verl.rows.convert.options import SILENT, RunOptions, Watcher
from samr1_verl.rows.files import complete
from samr1_verl.rows.parallel import ordered_map
from samr1_verl.rows.record import SCHEMA_VERSION, DataError, Record, concatenate, write_records

PART = 512  # jobs


@dataclass(frozen=True)
class Problem:
    """A fault in the source data. `rows`: number of rows that it cost; 0: the row was kept without the faulty part."""

    file: str
    record: str
    field: str
    problem: str
    rows: int

    def __str__(self) -> str:
        text = f"{self.file}: {self.record}, field {self.field!r}: {self.problem}"
        return text.encode("utf-8", "backslashreplace").decode()  # names of files may hold bytes that are no text


Job = Any  # picklable
Convert = Callable[[Job], tuple[list[Record], list[Problem]]]  # picklable


@dataclass
class Outcome:
    """The result of one file: number of rows, of rows left out and of problems, and the file that lists these."""

    path: Path
    rows: int
    left_out: int
    problems: int
    report: Path


class Workspace:
    """The hidden folder of one run. A later run of the same command resumes from it. A context manager.

    Args:
        folder: created here, removed when the block ends without an exception.
        plan: everything that determines the rows: options, and size and time of the source files. Where the folder
            holds another plan, it is emptied.
        watcher: receives `resumed` where the folder holds the same plan.

    Raises:
        DataError: another process works in the folder.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], watcher: Watcher = SILENT):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(folder.with_name(folder.name + ".lock"), "w")  # noqa: SIM115 - held until the block ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise DataError(
                "already_running", f"{folder}", "another run of this command writes here. Wait for it, or end it"
            ) from error
        text = json.dumps({**plan, "schema": SCHEMA_VERSION, "part": PART}, sort_keys=True, default=str)
        if (folder / "plan.json").is_file() and (folder / "plan.json").read_text() == text:
            watcher.resumed(folder)
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
    work: Workspace, out: Path, jobs: Iterable[Job], total: int | None, function: Convert, run: RunOptions
) -> Outcome:
    """Write the rows of all jobs to `out`, in the order of the jobs.

    Args:
        jobs: the same jobs in the same order each time the same command runs.
        total: number of jobs, for the progress bar; None: unknown.
        function: rows and problems of one job; runs in a worker process.

    Raises:
        DataError: `run.strict` and there is a problem, or no row is left.
    """
    if out.is_dir():
        raise DataError("out_is_folder", "--out", f"{out} is a folder, expected the name of a parquet file")
    folder = work.folder / out.name
    folder.mkdir(exist_ok=True)
    parts = _Parts(folder)
    with run.watcher.file(out.name, total) as advance, ExitStack() as stack:

        def todo() -> Iterator[tuple[int, Job]]:
            for index, job in enumerate(jobs):
                if index % PART == 0:
                    parts.seen.append(index // PART)
                if parts.is_done(index // PART):
                    advance()
                else:
                    yield index // PART, job

        results = stack.enter_context(closing(ordered_map(_Numbered(function), todo(), run.workers or None)))
        for number, group in groupby(results, key=lambda result: result[0]):
            parts.write(number, _watched(group, run.strict, advance))
    return parts.join(out)


def _watched(
    results: Iterable[tuple[int, list[Record], list[Problem]]], strict: bool, advance: Callable[[], None]
) -> Iterator[tuple[list[Record], list[Problem]]]:
    for _, records, problems in results:
        if strict and problems:
            raise DataError("problem_found", "--strict", f"{problems[0]}. Nothing was written")
        yield records, problems
        advance()


@dataclass
class _Numbered:
    """The function for jobs that carry the number of their part."""

    function: Convert

    def __call__(self, numbered: tuple[int, Job]) -> tuple[int, list[Record], list[Problem]]:
        return numbered[0], *self.function(numbered[1])


@dataclass
class _Parts:
    """The parts of one file: NUMBER.parquet, and NUMBER.jsonl beside it where there were problems."""

    folder: Path
    seen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A part with problems is converted again: the user may have repaired its images since.
        finished = {int(path.stem) for path in self.folder.glob("*.parquet")}
        self._done = finished - {int(path.stem) for path in self.folder.glob("*.jsonl")}

    def is_done(self, number: int) -> bool:
        return number in self._done

    def write(self, number: int, results: Iterable[tuple[list[Record], list[Problem]]]) -> None:
        """Write one part from rows and problems, one job after the other."""
        problems: list[Problem] = []
        report = self.folder / f"{number:06d}.jsonl"

        def rows() -> Iterator[Record]:
            for records, new_problems in results:
                problems.extend(new_problems)
                yield from records
            report.unlink(missing_ok=True)
            if problems:  # before the parquet file, whose presence means that the part is complete
                _write_lines(report, problems)

        write_records(self.folder / f"{number:06d}.parquet", rows())

    def join(self, out: Path) -> Outcome:
        """Make `out` and its report from the parts, or only the report where no row is left."""
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
            reason = f"{report} says why" if problems else "the source holds no sentences for it"
            raise DataError("nothing_converted", f"{out}", f"no row is left; {reason}")
        rows = concatenate(out, parts)
        return Outcome(out, rows, left_out, problems, report)


def _write_lines(path: Path, problems: Sequence[Problem]) -> None:
    with complete(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(problem)) + "\n" for problem in problems)


def stamp(path: Path) -> list[Any]:
    """Path, size and time of a source file, for a Workspace's plan. Raises DataError where the file is missing."""
    if not path.is_file():
        raise DataError("no_such_file", f"{path}", "no such file. Correct the option, or unpack the data set there")
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
