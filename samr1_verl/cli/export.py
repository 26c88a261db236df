"""`samr1 data export`: rows as another trainer reads them."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from samr1_verl.cli.options import SetOption, errors_end_the_command, progress_bar, safe_name


class For(str, Enum):
    """The trainers whose format is written."""

    verl = "verl"
    trl = "trl"
    verifiers = "verifiers"
    swift = "swift"


def export(
    file: Annotated[Path, typer.Argument(help="parquet file of rows")],
    trainer: Annotated[For, typer.Option("--for", help="trainer; verl: for its own data set; swift: ms-swift")],
    recipe: Annotated[str, typer.Option(help="recipe with prompt, frame and image size")] = "samr1",
    set_: SetOption = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="model folder or hub id of the policy, whose processor must keep the image size; default: the "
            "recipe's model"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the rows and images; default: outputs/export/TRAINER.FOLDER.FILE")
    ] = None,
) -> None:
    """Write rows.jsonl with prompts, image paths and what the rewards need, and images in the policy's size.

    Paths in rows.jsonl are absolute. docs/trainers.md has the lines with which each trainer reads the file.
    """
    from samr1_verl.policies.checkpoints import find
    from samr1_verl.policies.inference_config import InferenceConfig, compose_recipe
    from samr1_verl.policies.local import load_processor
    from samr1_verl.prompts.export import export as write
    from samr1_verl.prompts.questions import Questions
    from samr1_verl.rows.record import count_rows

    folder = out or Path("outputs/export") / safe_name(trainer.value, file)
    with errors_end_the_command():
        config = InferenceConfig.of(compose_recipe(recipe, set_ or []))
        processor = load_processor(find(policy or config.model, config.model).model)
        questions = Questions(config.prompt, processor, config.processor_kwargs)
        with progress_bar("rows") as progress:
            rows = write(file, folder, trainer.value, questions, progress)
    typer.echo(str(rows))
    typer.echo(json.dumps({"for": trainer.value, "rows": count_rows(file), "file": str(rows)}))
