"""gRefCOCO (GRES, CVPR 2023) to training rows: sentences about several objects, and about none.

    python data/grefcoco.py --annotations grefcoco --images coco/train2014 --out data/grefcoco

The folder of annotations holds grefs(unc).json and instances.json. Writes one parquet file a split, one row a sentence,
with one mask an object; a sentence without a target has no mask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from samr1_verl.rows.convert.annotations import Exif, Flaw
from samr1_verl.rows.convert.pipeline import report_and_exit
from samr1_verl.rows.convert.instances import read_stream
from samr1_verl.rows.convert.referring import NO_TARGET, Files, convert_splits, refs_of


def annotation_ids(ref: dict) -> list[Any]:
    """Ids of the objects that a reference means; none where it says no_target. Raises Flaw where it says both."""
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    empty = ids in ([], [None], NO_TARGET)
    if bool(ref.get("no_target", empty)) != empty:
        raise Flaw("no_target", f"it is {ref['no_target']}, and ann_id is {ids}; expected {NO_TARGET} without a target")
    return [] if empty else ids


def main(
    annotations: Annotated[Path, typer.Option(help="folder with grefs(unc).json and instances.json")],
    images: Annotated[Path, typer.Option(help="folder of COCO's train2014 images")],
    out: Annotated[Path, typer.Option(help="folder for the parquet files, one a split")],
    split: Annotated[list[str] | None, typer.Option(help="may be repeated; left out: every split")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="draw so many of train's sentences")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the sample")] = 42,
    exif: Annotated[Exif, typer.Option(help="which way up images with an EXIF orientation were annotated")] = Exif.auto,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first problem and write nothing")] = False,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: one a core")] = 0,
) -> None:
    """Convert gRefCOCO."""
    refs = annotations / "grefs(unc).json"
    files = Files("grefcoco", refs, annotations / "instances.json", images)
    fill = refs_of(lambda: read_stream(refs, "item"), annotation_ids)
    report_and_exit(lambda: convert_splits(files, fill, out, split or [], sample, seed, exif, strict, workers))


if __name__ == "__main__":
    typer.run(main)
