"""The options by which `samr1 predict` and `samr1 eval` name a policy, and how errors end a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Annotated

import typer

from samr1_verl import Samr1Error

PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="model folder, hub id, LoRA adapter, run folder or one of its checkpoints; default: the recipe's own",
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", help="address of an OpenAI-compatible server that answers, such as http://localhost:8000/v1"
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="its name on the server; default: the only model there")
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="recipe of prompt, image size and segmenter; default: the run that the policy comes from, else samr1, or "
        "samr1_tiny where no policy is named",
    ),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key=value, as on verl's command line; repeat it")]
MergeOption = Annotated[
    bool, typer.Option("--merge", help="merge verl's FSDP shards with verl's own merger into actor/merged, once")
]


class Parsing(str, Enum):
    """How answers are read: as rewards do, or as an untrained model needs it."""

    strict = "strict"
    lenient = "lenient"


ParsingOption = Annotated[
    Parsing,
    typer.Option("--parsing", help="strict: as rewards read answers; lenient: repairs an untrained model's answers"),
]


def check_one_policy(policy: str | None, server: str | None, model: str | None, merge: bool) -> None:
    """Raises typer.BadParameter where options name two policies, or a server's model without a server."""
    if server is not None and (policy is not None or merge):
        raise typer.BadParameter("name a policy by --server or by --policy, not by both")
    if server is None and model is not None:
        raise typer.BadParameter("--model is a name on a --server; a folder or hub id is a --policy")


@contextmanager
def errors_end_the_command() -> Iterator[None]:
    """An error that a user can mend becomes one message on standard error and exit status 1."""
    try:
        yield
    except Samr1Error as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
