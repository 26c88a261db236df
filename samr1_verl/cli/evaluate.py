"""`samr1 eval`: the figures of a policy on the rows of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from samr1_verl.cli.options import (
    MergeOption,
    ModelOption,
    Parsing,
    ParsingOption,
    PolicyOption,
    RecipeOption,
    ServerOption,
    SetOption,
    check_one_policy,
    errors_end_the_command,
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
    limit: Annotated[int | None, typer.Option(min=1, help="number of rows, from the first; default: all")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="rows per batch of a policy in this process")] = 16,
    parallel: Annotated[int, typer.Option(min=1, help="maximum number of concurrent requests to --server")] = 16,
    temperature: Annotated[float, typer.Option(min=0.0, help="sampling temperature; 0: greedy")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="seed of the sampling and of the bootstrap")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="discard predictions of an earlier start")] = False,
) -> None:
    """Evaluate a policy on every row of a file. After an interruption the same command resumes.

    Results: gIoU and cIoU over all rows and per group, with 95 % confidence intervals; over all rows also N-acc, T-acc
    and Pr@0.5 to 0.9, by the rules of each published evaluator.
    """
    from transformers.utils import logging as transformers_logging

    from samr1_verl.evaluation.run import Evaluation, results_of, store_results
    from samr1_verl.evaluation.table import show
    from samr1_verl.policies.load import PolicyChoice, config_for

    check_one_policy(policy, server, model, merge)
    transformers_logging.disable_progress_bar()
    folder = out or Path("outputs/eval") / _name(policy, server, model, file)
    with errors_end_the_command():
        config = config_for(policy, recipe, set_ or [], server is not None)
        choice = PolicyChoice(config, policy, server, model, merge, temperature, parallel)
        evaluation = Evaluation(
            file,
            choice,
            config,
            limit,
            lenient=parsing is Parsing.lenient,
            block=batch_size if server is None else 1,
            seed=seed,
        )
        with _progress() as progress:
            samples = evaluation.run(folder, restart, progress)
        results = results_of(samples, protocol.value, seed, evaluation.fingerprint())
        stored = store_results(results, folder)
    show(results, Console())
    typer.echo(f"{stored}\n{stored.with_name('predictions.jsonl')}")
    typer.echo(json.dumps({name: value for name, value in results.items() if name != "tables"}))


def _name(policy: str | None, server: str | None, model: str | None, file: Path) -> str:
    name = model or server or policy or "recipe"
    return re.sub(r"[^\w.-]+", "_", f"{name}.{file.parent.name}.{file.stem}").strip("._")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error: a function of the number of finished rows and the number of all rows."""
    columns = ("rows", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rows", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
