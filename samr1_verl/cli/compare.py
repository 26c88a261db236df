"""`samr1 compare`: the difference of two evaluations of the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from samr1_verl.cli.evaluate import Shown
from samr1_verl.cli.options import errors_end_the_command, table_console


def compare(
    a: Annotated[Path, typer.Argument(help="folder of an evaluation, or its predictions.jsonl")],
    b: Annotated[Path, typer.Argument(help="the same of another policy; differences are B minus A")],
    protocol: Annotated[Shown, typer.Option(help="protocol of gIoU and cIoU")] = Shown.lisa,
    rows: Annotated[int, typer.Option(min=0, help="number of rows shown, those that changed most")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="seed of the resamples")] = 0,
    json_: Annotated[Path | None, typer.Option("--json", help="file for the comparison as JSON")] = None,
    out: Annotated[Path | None, typer.Option(help="file for the comparison as an HTML page")] = None,
) -> None:
    """Compare two evaluations of the same rows: differences with 99 % intervals, and the rows that changed most.

    Of equal policies, at most 2 % of the comparisons find a difference. Evaluations of different rows are refused.
    """
    from samr1_verl.evaluation.compare import compare as compare_pairs
    from samr1_verl.evaluation.comparison_table import show_comparison
    from samr1_verl.evaluation.pairs import read_pairs
    from samr1_verl.report.comparison import comparison_page
    from samr1_verl.rows.files import complete

    with errors_end_the_command():
        pairs = read_pairs(a, b)
        comparison = {"a": str(a), "b": str(b), **compare_pairs(pairs, protocol.value, seed, rows)}
        files = {} if json_ is None else {json_: f"{json.dumps(comparison, indent=2)}\n"}
        if out is not None:
            files[out], problems = comparison_page(comparison, pairs)
            for problem in problems:
                typer.echo(f"image not shown: {problem}", err=True)
    show_comparison(comparison, table_console())
    for path, content in files.items():
        with complete(path) as part:
            part.write_text(content, encoding="utf-8")
        typer.echo(str(path))
    typer.echo(json.dumps({name: value for name, value in comparison.items() if name != "changed"}))
