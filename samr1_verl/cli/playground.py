"""`samr1 playground`: a local page for questions to a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samr1_verl.cli.options import (
    MergeOption,
    Parsing,
    ParsingOption,
    PolicyOption,
    RecipeOption,
    SetOption,
    errors_end_the_command,
)

SHAPES = Path("data/shapes/test.parquet")


def playground(
    policy: PolicyOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    merge: MergeOption = False,
    parsing: ParsingOption = Parsing.strict,
    examples: Annotated[
        Path | None, typer.Option(help=f"parquet file with example rows for the page; default: {SHAPES}, if present")
    ] = None,
    port: Annotated[int, typer.Option(help="port on 127.0.0.1")] = 8770,
) -> None:
    """Serve a page on this machine that shows a policy's reasoning, prompts and mask for an image and a sentence."""
    import importlib.util

    if importlib.util.find_spec("prometheus_client") is None:
        typer.echo("error: prometheus-client is not installed. Type: pip install 'samr1-verl[service]'", err=True)
        raise typer.Exit(1)
    import uvicorn
    from transformers.utils import logging as transformers_logging

    from samr1_verl.policies.load import config_for, load_local
    from samr1_verl.policies.predict import Predictor
    from samr1_verl.report.playground import create_app, examples_from

    transformers_logging.disable_progress_bar()
    with errors_end_the_command():
        config = config_for(policy, recipe, set_ or [], server=False)
        file = examples or (SHAPES if SHAPES.is_file() else None)
        offered = examples_from(file) if file is not None else []
        lenient = parsing is Parsing.lenient
        predictor = Predictor(load_local(policy, config, merge, lenient), config, lenient=lenient)
        app = create_app(predictor, Path(policy or config.model).name, offered)
    typer.echo(f"http://127.0.0.1:{port}/  stop with Ctrl-C")
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
