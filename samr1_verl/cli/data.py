"""`samr1 data`: convert data sets to files of rows; validate, show, measure and export the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from samr1_verl.cli.ceiling import ceiling
from samr1_verl.cli.convert import app as convert_app
from samr1_verl.cli.difficulty import difficulty
from samr1_verl.cli.export import export

app = typer.Typer(
    no_args_is_help=True, help="Convert data sets to files of rows; check, show, measure and export the rows."
)
app.add_typer(convert_app, name="convert")
app.command()(ceiling)
app.command()(difficulty)
app.command()(export)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="parquet files of rows; two files must not share an image")],
    limit: Annotated[int, typer.Option(min=0, help="maximum number of problems printed per kind; 0: all")] = 10,
    workers: Annotated[int, typer.Option(min=0, help="number of processes; 0: one per core")] = 0,
) -> None:
    """Validate rows against their images and masks. Exit status 0: no problem.

    Problems: a missing or changed image, an image of a ratio beyond 200:1, an empty mask, a box beside its mask, a
    duplicate row, an image in two files.
    """
    from samr1_verl.rows.check import Problem, Summary, check_files, first_of_each_kind
    from samr1_verl.rows.record import DataError, count_rows

    problems: list[Problem] = []
    try:
        columns = ("rows", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("rows", total=sum(count_rows(path) for path in files))
            for result in check_files(files, workers or None, lambda rows: progress.advance(task, rows)):
                if isinstance(result, Summary):
                    repeats = f", repeats under other ids: {result.repeats:,}" if result.repeats else ""
                    typer.echo(f"{result.path}: rows: {result.rows:,}, images: {result.images:,}{repeats}")
                else:
                    problems.append(result)
    except DataError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for line in first_of_each_kind(problems, limit):
        typer.echo(f"  {line}")
    typer.echo(f"problems: {len(problems):,}")
    raise typer.Exit(1 if problems else 0)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="parquet file of rows")],
    out: Annotated[Path | None, typer.Option(help="PNG file to write; default: the file's name with .png")] = None,
    rows: Annotated[int, typer.Option(min=1, help="number of random rows on the sheet")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="seed of the random choice")] = 0,
) -> None:
    """Draw random rows, with masks, boxes and points, on one PNG, and print statistics of all rows."""
    from samr1_verl.rows.record import DataError
    from samr1_verl.rows.show import look

    try:
        sheet, statistics = look(file, rows, seed)
    except DataError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    path = out or file.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")
    for name, value in statistics.lines():
        typer.echo(f"{name:26}{value}")
    typer.echo(f"{'sheet':26}{path}")
