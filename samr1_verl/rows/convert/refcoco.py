"""RefCOCO, RefCOCO+ and RefCOCOg as their authors ship them (the REFER toolkit's zip files) to training rows.

    python data/refcoco.py --annotations refer/refcocog --split-by umd --images coco/train2014 \\
        --out data/refcocog --sample 3000 --seed 42

The folder of annotations holds refs(unc).p, refs(umd).p or refs(google).p, and instances.json. Writes one parquet file
a split, one row a sentence; a sample also lists the sentences that were drawn, in train.sample.json.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from samr1_verl.rows.convert.annotations import Exif
from samr1_verl.rows.convert.pipeline import Outcome, report_and_exit
from samr1_verl.rows.convert.referring import Files, convert_splits, refs_of

from samr1_verl.rows.record import DataError

# What Python raises for bytes that are no pickle, or half of one.
_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError, MemoryError)


class PlainUnpickler(pickle.Unpickler):
    """Unpickles lists, dictionaries, text and numbers. Anything that would import or call something is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}; only plain lists, dictionaries, text and numbers are"
        )


def read_refs(path: Path) -> Iterator[dict]:
    """The references of a pickle, which is one object: all of them are in memory until the last was read.

    Raises:
        DataError: the file is broken, or holds anything but plain values.
    """
    try:
        with path.open("rb") as file:
            # Python 2 wrote them: its byte strings are text, and wrong bytes must not stop the other sentences.
            refs = PlainUnpickler(file, encoding="utf-8", errors="surrogateescape").load()
    except _BROKEN as error:
        raise DataError(f"{path}: refused ({error}). Download it again from the data set's authors") from error
    if not isinstance(refs, list):
        raise DataError(f"{path}: holds a {type(refs).__name__}, expected a list of references")
    refs.reverse()
    while refs:
        yield refs.pop()


def main(
    annotations: Annotated[Path, typer.Option(help="folder with refs(SPLIT_BY).p and instances.json")],
    images: Annotated[Path, typer.Option(help="folder of COCO's train2014 images")],
    out: Annotated[Path, typer.Option(help="folder for the parquet files, one a split")],
    split_by: Annotated[str, typer.Option(help="unc (RefCOCO, RefCOCO+), umd or google (RefCOCOg)")] = "unc",
    split: Annotated[list[str] | None, typer.Option(help="may be repeated; left out: every split")] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="draw so many of train's sentences; the paper: 3000")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the sample")] = 42,
    exif: Annotated[Exif, typer.Option(help="which way up images with an EXIF orientation were annotated")] = Exif.auto,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first problem and write nothing")] = False,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: one a core")] = 0,
) -> None:
    """Convert RefCOCO, RefCOCO+ or RefCOCOg."""
    report_and_exit(
        lambda: _convert(annotations, images, out, split_by, split or [], sample, seed, exif, strict, workers)
    )


def _convert(
    annotations: Path, images: Path, out: Path, split_by: str, split: list[str], *options: Any
) -> list[Outcome]:
    refs = annotations / f"refs({split_by}).p"
    if not refs.is_file():
        there = ", ".join(sorted(path.name for path in annotations.glob("refs(*).p"))) or "none"
        raise DataError(
            f"{refs}: no such file; references in this folder: {there}. Correct --annotations or --split-by"
        )
    files = Files(annotations.resolve().name, refs, annotations / "instances.json", images)
    fill = refs_of(lambda: read_refs(refs), lambda ref: [ref["ann_id"]])
    return convert_splits(files, fill, out, split, *options)


if __name__ == "__main__":
    typer.run(main)
