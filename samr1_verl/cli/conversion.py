"""The running of a conversion on the command line: its progress, its result, its errors and its exit status."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from samr1_verl import Samr1Error
from samr1_verl.rows.convert.options import RunOptions, Watcher

if TYPE_CHECKING:
    from samr1_verl.rows.convert.pipeline import Outcome

FAILED, SOME_LEFT_OUT, INTERRUPTED = 1, 3, 130  # exit statuses; 0: every row was written
SHOWN = 5  # problems printed; the report lists all
PACKAGES = ("cv2", "ijson")  # import names of the packages in the extra `data`
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Terminal(Watcher):
    """Progress on standard error: a bar per file, and a line where an interrupted run is resumed."""

    def resumed(self, folder: Path) -> None:
        typer.echo(f"{folder}: going on with an interrupted run", err=True)

    @contextmanager
    def file(self, name: str, total: int | None) -> Iterator[Callable[[], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(name, total=total)
            yield lambda: progress.advance(task)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        # The speed that rich computes is of the last moments, and results come in bursts.
        return Text(f"{task.completed / task.elapsed:,.1f} images/s" if task.elapsed else "")


def run_options(strict: bool, workers: int) -> RunOptions:
    """The options of a conversion that shows its progress on the terminal."""
    return RunOptions(strict, workers, Terminal())


def report_and_exit(run: Callable[[], Sequence[Outcome]]) -> None:
    """Run a converter, print the result of each file, and end with the exit status that fits it."""
    try:
        outcomes = run()
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(INTERRUPTED) from error
    except (Samr1Error, OSError, sqlite3.OperationalError, BrokenProcessPool, ModuleNotFoundError) as error:
        message = _message(error)
        if message is None:
            raise
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(FAILED) from error
    for outcome in outcomes:
        typer.echo(f"{outcome.path}: {outcome.rows} rows")
        if outcome.problems:
            _show_problems(outcome)
    if any(outcome.problems for outcome in outcomes):
        raise typer.Exit(SOME_LEFT_OUT)


def _message(error: Exception) -> str | None:
    """The message for errors that a user can repair; None: the error is a fault of the program."""
    if isinstance(error, Samr1Error):
        return str(error)
    if isinstance(error, BrokenProcessPool):
        return (
            "a worker process was killed, as happens when memory runs out. Type the same command with fewer "
            "--workers; it goes on where this one stopped"
        )
    if isinstance(error, ModuleNotFoundError):
        return (
            f"{error.name} is not installed. Type: pip install 'samr1-verl[data]'" if error.name in PACKAGES else None
        )
    if getattr(error, "errno", None) in _FULL or "disk is full" in str(error):
        return f"the disk is full ({error}). Make room; the same command then goes on where this one stopped"
    if isinstance(error, OSError) and error.filename is not None:  # as for an --out that may not be written
        return f"{error.filename}: {error.strerror}. Correct the option that names it, or the file's permissions"
    return None


def _show_problems(outcome: Outcome) -> None:
    from samr1_verl.rows.convert.pipeline import Problem

    counts = f"problems: {outcome.problems}, rows left out: {outcome.left_out}"
    typer.echo(f"  {counts}; all in {outcome.report}, the first:")
    with open(outcome.report, encoding="utf-8") as file:
        for _, line in zip(range(SHOWN), file, strict=False):
            typer.echo(f"  {Problem(**json.loads(line))}")
