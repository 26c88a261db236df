"""`samr1 report`: a training run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samr1_verl.cli.options import errors_end_the_command


def report(
    run: Annotated[Path, typer.Argument(help="folder of a training run (trainer.default_local_dir)")],
    compare: Annotated[Path | None, typer.Option(help="folder of a second run, for comparison")] = None,
    out: Annotated[Path | None, typer.Option(help="the HTML file; default: RUN/report.html")] = None,
) -> None:
    """Write the curves and the validation samples of a run to one HTML file that needs no server."""
    from samr1_verl.report.page import report as page_of
    from samr1_verl.report.run import read_run
    from samr1_verl.rows.files import complete

    with errors_end_the_command():
        runs = [read_run(folder) for folder in (run, compare) if folder is not None]
        page, problems = page_of(runs)
    path = out or run / "report.html"
    with complete(path) as part:
        part.write_text(page, encoding="utf-8")
    for problem in problems:
        typer.echo(f"image not shown: {problem}", err=True)
    for shown in runs:
        samples = sum(map(len, shown.samples.values()))
        typer.echo(f"{shown.name}: {len(shown.curves)} curves, {samples} samples of {len(shown.samples)} steps")
    typer.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
