"""gRefCOCO (GRES, CVPR 2023) converted to rows: its sentences are about one object, several objects, or none.

The folder of annotations holds grefs(unc).json and instances.json. Each split becomes a parquet file, each sentence a
row, each object a mask. A sentence without a target has no mask. Objects marked `iscrowd` are skipped, as the API
of the data set does (getMaskByRef in ReLA's gres_model/data/datasets/grefer.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samr1_verl.rows.convert.json_files import read_stream
from samr1_verl.rows.convert.names import Flaw, short
from samr1_verl.rows.convert.options import Exif, RunOptions
from samr1_verl.rows.convert.pipeline import Outcome
from samr1_verl.rows.convert.referring import NO_TARGET, Sample, convert_splits, refs_of
from samr1_verl.rows.convert.referring_rows import Files


def annotation_ids(ref: dict) -> list[Any]:
    """Ids of the objects that a reference means; none for a reference without a target.

    Raises:
        Flaw: `no_target` and `ann_id` contradict each other.
    """
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    empty = ids in ([], [None], NO_TARGET)
    if bool(ref.get("no_target", empty)) != empty:
        raise Flaw(
            "contradictory_target",
            "no_target",
            f"it is {short(ref['no_target'])}, and ann_id is {short(ids)}; expected {NO_TARGET} without a target",
        )
    return [] if empty else ids


def convert_grefcoco(
    annotations: Path,
    images: Path,
    out: Path,
    splits: Sequence[str],
    sample: Sample | None,
    exif: Exif,
    run: RunOptions,
) -> list[Outcome]:
    """Write OUT/SPLIT.parquet for each of `splits` (empty: all).

    Args:
        annotations: folder with grefs(unc).json and instances.json.
        images: folder of COCO's train2014 images.

    Raises:
        DataError: as convert_splits.
    """
    refs = annotations / "grefs(unc).json"
    files = Files("grefcoco", refs, annotations / "instances.json", images, skip_crowds=True)
    fill = refs_of(lambda: read_stream(refs, "item"), annotation_ids)
    return convert_splits(files, fill, out, splits, sample, exif, run)
