"""`samr1 eval`: the figures of a policy on the rows of a file."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from samr1_verl.cli.options import (
    BatchSizeOption,
    LimitOption,
    MergeOption,
    ModelOption,
    ParallelOption,
    Parsing,
    ParsingOption,
    PolicyOption,
    RecipeOption,
    RestartOption,
    ServerOption,
    SetOption,
    check_one_policy,
    errors_end_the_command,
    progress_bar,
    safe_name,
    sampling_temperature,
    table_console,
)


class Shown(str, Enum):
    """The protocol of the printed groups and intervals; the names of `geometry.giou.PROTOCOLS`."""

    lisa = "lisa"
    segzero = "segzero"
    segzero_scripts = "segzero_scripts"
    vision_reasoner = "vision_reasoner"
    vision_reasoner_no_object = "vision_reasoner_no_object"
    star = "star"
    rela = "rela"
    rela_50 = "rela_50"


def evaluate(
    file: Annotated[Path, typer.Argument(help="parquet file of rows")],
    policy: PolicyOption = None,
    server: ServerOption = None,
    model: ModelOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    merge: MergeOption = False,
    protocol: Annotated[
        Shown, typer.Option(help="protocol of the printed groups and intervals; the results hold all protocols")
    ] = Shown.lisa,
    parsing: ParsingOption = Parsing.strict,
    out: Annotated[
        Path | None, typer.Option(help="folder of the results; default: outputs/eval/POLICY.FOLDER.FILE")
    ] = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 16,
    parallel: ParallelOption = 16,
    votes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="number of sampled answers a row, combined into one mask by StAR's vote, with a curve of gIoU against "
            "it; default: one greedy answer",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="sampling temperature; 0: greedy. Default: 0; with --votes the recipe's rollouts'"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the sampling and of the bootstrap")] = 0,
    restart: RestartOption = False,
) -> None:
    """Evaluate a policy on every row of a file. After an interruption the same command resumes.

    Results: gIoU and cIoU over all rows and per group, with 95 % confidence intervals; over all rows also N-acc, T-acc
    and Pr@0.5 to 0.9, by the rules of each published evaluator.
    """
    from transformers.utils import logging as transformers_logging

    from samr1_verl.evaluation.ballots import elected
    from samr1_verl.evaluation.poll import Poll, curve
    from samr1_verl.evaluation.run import Evaluation, results_of, store_results
    from samr1_verl.evaluation.table import show, show_curve
    from samr1_verl.policies.load import PolicyChoice, config_for

    check_one_policy(policy, server, model, merge)
    transformers_logging.disable_progress_bar()
    asked = model or server or policy or "recipe"
    folder = out or Path("outputs/eval") / safe_name(asked, file, ".votes" if votes is not None else "")
    with errors_end_the_command():
        config = config_for(policy, recipe, set_ or [], server is not None)
        if votes is None:
            drawn_at = temperature or 0.0
        else:
            several = f"--votes {votes}"
            drawn_at = sampling_temperature(temperature, config.sampling.temperature, several, ", or leave out --votes")
        lenient = parsing is Parsing.lenient
        choice = PolicyChoice(config, policy, server, model, merge, drawn_at, parallel, lenient)
        evaluation = Evaluation(
            file,
            choice,
            config,
            limit,
            lenient=lenient,
            block=batch_size if server is None else 1,
            seed=seed,
        )
        with progress_bar("rows" if votes is None else "answers") as progress:
            if votes is None:
                samples, points = evaluation.run(folder, restart, progress), None
            else:
                rows = Poll(evaluation, votes).run(folder, restart, progress)
                samples, points = list(map(elected, rows)), curve(rows, seed)
        results = results_of(samples, protocol.value, seed, evaluation.fingerprint())
        if points is not None:
            results |= {"votes": votes, "curve": points}
        stored = store_results(results, folder)
    show(results, table_console())
    if points is not None:
        show_curve(points, protocol.value, table_console())
    typer.echo(f"{stored}\n{stored.with_name('predictions.jsonl')}")
    typer.echo(json.dumps({name: value for name, value in results.items() if name != "tables"}))
