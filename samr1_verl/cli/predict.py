"""`samr1 predict`: a policy's answer for an image and a sentence, as text and as pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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

if TYPE_CHECKING:
    from samr1_verl.scoring.sample import Sample


def predict(
    images: Annotated[list[Path], typer.Argument(help="image files", metavar="IMAGE")],
    sentence: Annotated[str, typer.Argument(help="description of the object to segment", metavar="SENTENCE")],
    policy: PolicyOption = None,
    server: ServerOption = None,
    model: ModelOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    merge: MergeOption = False,
    parsing: ParsingOption = Parsing.strict,
    out: Annotated[Path, typer.Option(help="folder for overlay, mask and JSON of each image")] = Path(
        "outputs/predict"
    ),
) -> None:
    """Segment the object that a sentence describes, in one or several images, with a policy."""
    import asyncio

    from transformers.utils import logging as transformers_logging

    from samr1_verl.policies.load import PolicyChoice, config_for
    from samr1_verl.policies.predict import Predictor

    check_one_policy(policy, server, model, merge)
    transformers_logging.disable_progress_bar()
    with errors_end_the_command():
        config = config_for(policy, recipe, set_ or [], server is not None)
        lenient = parsing is Parsing.lenient
        loaded = PolicyChoice(config, policy, server, model, merge, lenient=lenient).load()
        predictor = Predictor(loaded, config, lenient=lenient)
        samples = asyncio.run(predictor.predict_all([(image, sentence) for image in images]))
    out.mkdir(parents=True, exist_ok=True)
    for sample, name in zip(samples, _names(images, sentence), strict=True):
        _report(sample, _write(sample, out / name))


def _names(images: list[Path], sentence: str) -> list[str]:
    """One file name per image, from image and sentence; with a number where images of several folders share a name."""
    words = re.sub(r"\W+", "_", sentence.lower()).strip("_")[:40]
    names = [f"{image.stem}.{words}" for image in images]
    return [name if names.index(name) == number else f"{name}.{number}" for number, name in enumerate(names)]


def _write(sample: Sample, stem: Path) -> list[Path]:
    """Write overlay, mask and JSON of a sample to `stem`.overlay.png, .mask.png and .json; of a dialogue with several
    turns an overlay of each answer, too, to `stem`.turn1.overlay.png and so on. Returns the paths in this order.
    """
    from samr1_verl.geometry.images import open_image
    from samr1_verl.scoring.overlay import mask_image, overlay

    def named(kind: str) -> Path:
        return stem.with_name(f"{stem.name}.{kind}")

    image = open_image(sample.image)
    pictures = {named("overlay.png"): overlay(sample, image), named("mask.png"): mask_image(sample)}
    for number, turn in enumerate(sample.turns, start=1):
        if turn.mask is not None:
            pictures[named(f"turn{number}.overlay.png")] = overlay(sample.after(number), image)
    for path, picture in pictures.items():
        picture.save(path)
    named("json").write_text(f"{sample.model_dump_json(indent=2)}\n")
    last, mask, *turns = pictures
    return [last, mask, named("json"), *turns]


def _report(sample: Sample, files: list[Path]) -> None:
    typer.echo(sample.image)
    if not sample.turns:
        _tell(sample)
    for number, turn in enumerate(sample.turns, start=1):
        typer.echo(f"  turn {number}")
        if turn.mask is None:
            _tell_reasoning(turn.text)
            typer.echo(f"  {'done':10}the mask stays")
        else:
            _tell(sample.after(number))
    for file in files:
        typer.echo(f"  {'file':10}{file}")


def _tell(sample: Sample) -> None:
    """Print reasoning, box, points and mask of the sample's answer."""
    from samr1_verl.geometry.masks import decode_rle

    _tell_reasoning(sample.response)
    if sample.reason is not None:
        typer.echo(f"  {'unusable':10}{sample.reason}: the mask is empty")
    for shape in sample.shapes:
        if shape.box is not None:
            typer.echo(f"  {'box':10}{', '.join(f'{edge:.1f}' for edge in shape.box)}")
        for (x, y), label in zip(shape.points, shape.labels, strict=True):
            typer.echo(f"  {'point':10}{x:.1f}, {y:.1f}{'' if label else ' (not on it)'}")
    pixels = int(decode_rle(sample.mask, sample.size).sum())
    typer.echo(f"  {'mask':10}{pixels:,} pixels, {100 * pixels / (sample.size[0] * sample.size[1]):.1f} % of the image")


def _tell_reasoning(text: str) -> None:
    """Print a response's reasoning, or the whole response where it has none."""
    from samr1_verl.answers import thinking

    # Without control characters: a model's text must not control the terminal.
    response = "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    reasoning = thinking(response)
    typer.echo(f"  {'response' if reasoning is None else 'reasoning':10}{(reasoning or response).strip()}")
