"""Options that several commands share, most of them for the policy; error messages, progress and names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from samr1_verl import Samr1Error

PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="model folder, hub id, LoRA adapter, run folder or checkpoint of a run; default: the recipe's model",
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        help="address of an OpenAI-compatible server with the policy, such as http://localhost:8000/v1",
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="name of the policy on --server; default: the server's only model")
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="recipe with prompt, image size and segmenter; default: the recipe of the policy's training run, else "
        "samr1; samr1_tiny without --policy and --server",
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="key=value of the recipe, as on verl's command line; may be repeated")
]
MergeOption = Annotated[
    bool,
    typer.Option(
        "--merge", help="merge a checkpoint's FSDP shards with verl's merger into actor/merged, where not done yet"
    ),
]

LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="number of rows, from the first; default: all")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, help="rows per batch of a policy in this process")]
ParallelOption = Annotated[
    int, typer.Option("--parallel", min=1, help="maximum number of concurrent requests to --server")
]
RestartOption = Annotated[bool, typer.Option("--restart", help="discard predictions of an earlier start")]


class Parsing(str, Enum):
    """How answers are parsed: strictly as for rewards, or leniently for an untrained model."""

    strict = "strict"
    lenient = "lenient"


ParsingOption = Annotated[
    Parsing,
    typer.Option("--parsing", help="strict: as for rewards; lenient: repairs the answers of an untrained model"),
]


def check_one_policy(policy: str | None, server: str | None, model: str | None, merge: bool) -> None:
    """Check that the options name one policy.

    Raises:
        typer.BadParameter: --server together with --policy or --merge, or --model without --server.
    """
    if server is not None and (policy is not None or merge):
        raise typer.BadParameter("--server cannot be used with --policy or --merge: the server has the policy")
    if server is None and model is not None:
        raise typer.BadParameter("--model is a name on a --server; a folder or hub id is a --policy")


def sampling_temperature(chosen: float | None, of_rollouts: float, asked: str, otherwise: str = "") -> float:
    """The temperature of several answers a row: `chosen`, or that of the recipe's rollouts.

    Args:
        asked: the option that asks for several answers, with its value, for the message.
        otherwise: what the user may do without them, for the message.

    Raises:
        ConfigError: the temperature is 0.
    """
    from samr1_verl.config import ConfigError

    temperature = of_rollouts if chosen is None else chosen
    if temperature == 0:
        source = "--temperature" if chosen is not None else "actor_rollout_ref.rollout.temperature"
        raise ConfigError(
            "temperature_is_zero",
            source,
            f"found 0 with {asked}, expected more than 0: greedy answers are all the same. Set --temperature, for "
            f"example to 1{otherwise}",
        )
    return temperature


@contextmanager
def errors_end_the_command() -> Iterator[None]:
    """Turn a Samr1Error, which the user can correct, into a message on standard error and exit status 1."""
    try:
        yield
    except Samr1Error as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def table_console() -> Console:
    """A console for tables. Where no terminal shows them, as in a log, they are as wide as their content."""
    console = Console()
    return console if console.is_terminal else Console(width=1000)


@contextmanager
def progress_bar(counted: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error: a function of the number of finished and of all rows or answers."""
    columns = (counted, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(counted, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def safe_name(what: str, file: Path, end: str = "") -> str:
    """The name of a folder of results, from what was asked and the data file."""
    return re.sub(r"[^\w.-]+", "_", f"{what}.{file.parent.name}.{file.stem}{end}").strip("._")
