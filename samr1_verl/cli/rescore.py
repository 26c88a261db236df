"""`samr1 rescore`: the figures of `samr1 eval` for predictions that somebody else made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from samr1_verl.cli.evaluate import Shown
from samr1_verl.cli.options import errors_end_the_command, safe_name, table_console


def rescore(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="NAME.jsonl with RLE, NAME.json with COCO results, a folder of PNG masks, or a folder of samr1 eval"
        ),
    ],
    file: Annotated[Path, typer.Argument(help="parquet file of the rows")],
    key: Annotated[
        str | None,
        typer.Option(
            help="key of the rows' source that names a row, such as sent_id; default: the row's number, from 0"
        ),
    ] = None,
    unite: Annotated[
        bool, typer.Option("--unite", help="unite the masks of each row; default: several are refused")
    ] = False,
    protocol: Annotated[
        Shown, typer.Option(help="protocol of the printed groups and intervals; the results hold all protocols")
    ] = Shown.lisa,
    out: Annotated[
        Path | None, typer.Option(help="folder of the results; default: outputs/rescore/PREDICTIONS.FOLDER.FILE")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="number of rows, from the first; default: all")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the bootstrap")] = 0,
) -> None:
    """Compute the figures of samr1 eval for masks that were predicted elsewhere.

    Every row counts: a row without a prediction is an empty mask with the reason "missing". A prediction that is
    damaged, has another size or names no row is refused.
    """
    from samr1_verl.evaluation.journal import PREDICTIONS
    from samr1_verl.evaluation.predictions import read_predictions
    from samr1_verl.evaluation.rescore import check_out, drop_text_figures, rescored
    from samr1_verl.evaluation.row_names import RowNames
    from samr1_verl.evaluation.rows import read_rows
    from samr1_verl.evaluation.run import results_of, store_results
    from samr1_verl.evaluation.table import show
    from samr1_verl.geometry.images import sha256_of
    from samr1_verl.scoring.sample import write_samples

    folder = out or Path("outputs/rescore") / safe_name(predictions.stem, file)
    with errors_end_the_command():
        check_out(folder)
        rows = RowNames(read_rows(file, limit, images=False), file, key)
        samples = rescored(rows, file, read_predictions(predictions, rows, unite))
        settings = {
            "predictions": str(predictions.absolute()),
            "file": str(file.absolute()),
            "file_sha256": sha256_of(file),
            "limit": limit,
            "key": key,
            "unite": unite,
        }
        results = results_of(samples, protocol.value, seed, settings)
        if not any(sample.response for sample in samples):
            drop_text_figures(results)
        write_samples(samples, folder / PREDICTIONS)
        stored = store_results(results, folder)
    show(results, table_console())
    typer.echo(f"{stored}\n{folder / PREDICTIONS}")
    typer.echo(json.dumps({name: value for name, value in results.items() if name != "tables"}))
