"""`samr1 data`: whether the rows of a file are true, and what they look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

app = typer.Typer(no_args_is_help=True, help="Check and show files of training rows.")


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="parquet files; of several, no two may share an image")],
    limit: Annotated[int, typer.Option(min=0, help="problems of each kind that are printed; 0: all")] = 10,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: one a core")] = 0,
) -> None:
    """Check every row and image; exit status 0 only when everything holds."""
    from samr1_verl.rows.check import Problem, Summary, check_files, first_of_each_kind
    from samr1_verl.rows.record import DataError, count_rows

    problems: list[Problem] = []
    try:
        columns = ("rows", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("rows", total=sum(count_rows(path) for path in files))
            for found in check_files(files, workers or None, lambda rows: progress.advance(task, rows)):
                if isinstance(found, Summary):
                    repeats = f", repeats under other ids: {found.repeats:,}" if found.repeats else ""
                    typer.echo(f"{found.path}: rows: {found.rows:,}, images: {found.images:,}{repeats}")
                else:
                    problems.append(found)
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
    out: Annotated[Path | None, typer.Option(help="the sheet's PNG file; left out: FILE.png beside the file")] = None,
    rows: Annotated[int, typer.Option(min=1, help="random rows on the sheet")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="of the choice of rows")] = 0,
) -> None:
    """Draw random rows on a contact sheet, and print figures over all rows."""
    from samr1_verl.rows.show import look
    from samr1_verl.rows.record import DataError

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
