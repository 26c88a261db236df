"""`samr1 report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="folder of a training run: its trainer.default_local_dir")],
    compare: Annotated[Path | None, typer.Option(help="folder of a second run, shown beside the first")] = None,
    out: Annotated[Path | None, typer.Option(help="the HTML file; left out: RUN/report.html")] = None,
) -> None:
    """Write what a run did as one HTML file that needs no server: its curves, and its samples step by step."""
    from samr1_verl.geometry.masks import MaskError
    from samr1_verl.rows.record import DataError
    from samr1_verl.rows.files import complete
    from samr1_verl.report.page import report as page_of
    from samr1_verl.report.run import RunError, read_run

    try:
        runs = [read_run(folder) for folder in (run, compare) if folder is not None]
        page, problems = page_of(runs)
    except (RunError, DataError, MaskError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    path = out or run / "report.html"
    with complete(path) as part:
        part.write_text(page, encoding="utf-8")
    for problem in problems:
        typer.echo(f"image not shown: {problem}", err=True)
    for one in runs:
        samples = sum(map(len, one.samples.values()))
        typer.echo(f"{one.name}: {len(one.curves)} curves, {samples} samples of {len(one.samples)} steps")
    typer.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
