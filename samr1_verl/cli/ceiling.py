"""`samr1 data ceiling`: what true prompts earn on the rows of a file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import typer

from samr1_verl.cli.options import SetOption, errors_end_the_command, progress_bar, safe_name, table_console


def ceiling(
    file: Annotated[Path, typer.Argument(help="parquet file of rows with masks, boxes and points")],
    recipe: Annotated[str, typer.Option(help="recipe with prompt, segmenter and reward")] = "samr1",
    set_: SetOption = None,
    jitter: Annotated[
        int,
        typer.Option(min=0, help="further prompts a row, with edges of boxes moved by up to 5 %; the best counts"),
    ] = 0,
    keep_above: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="also write kept.parquet with the rows whose mask IoU is above it, such as 0.5"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the results; default: outputs/ceiling/RECIPE.FOLDER.FILE")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="number of rows, from the first; default: all")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of --jitter")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="discard results of an earlier start")] = False,
) -> None:
    """Prompt the frozen segmenter with the truth's own boxes and points: what a perfect policy earns.

    Writes rows.parquet with the column ceiling (mask IoU), a histogram, and a sheet of the rows with the lowest IoU.
    After an interruption the same command resumes.
    """
    import numpy as np

    from samr1_verl.config import ConfigError
    from samr1_verl.evaluation.ceiling import Ceiling
    from samr1_verl.evaluation.ceiling_results import results_of, rows_above, show, store_pictures
    from samr1_verl.evaluation.run import store_results
    from samr1_verl.policies.load import config_for
    from samr1_verl.rows.measured import check_out, store_measured
    from samr1_verl.scoring.recipe_reward import RecipeReward

    folder = out or Path("outputs/ceiling") / safe_name(recipe, file)
    with errors_end_the_command():
        if importlib.util.find_spec("matplotlib") is None:
            raise ConfigError("not_installed", "matplotlib", "not installed. Type: pip install 'samr1-verl[report]'")
        check_out(file, folder)
        config = config_for(None, recipe, set_ or [], False)
        measured = Ceiling(file, config, RecipeReward(config.reward), limit, jitter, seed)
        with progress_bar("rows") as progress:
            reached = measured.run(folder, restart, progress)
        results = results_of(reached, measured, keep_above)
        show(results, reached, measured, table_console())
        files = [store_results(results, folder), *store_pictures(reached, measured, folder)]
        keep = None if keep_above is None else rows_above(reached, keep_above)
        files += store_measured(file, folder, {"ceiling": np.array([one.iou for one in reached])}, keep)
    typer.echo("\n".join(map(str, files)))
    typer.echo(json.dumps(results))
