"""gRefCOCO: sentences about several objects keep them apart, sentences about none have none."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from samr1_verl.cli.convert import grefcoco
from samr1_verl.geometry.masks import decode_rle, union_rle
from tests.rows.convert.sources import (
    ARC,
    VOC,
    instances,
    polygon_mask,
    problems_of,
    reference,
    rows_of,
    status_of,
    write_images,
)

REFERENCES = [
    reference(1, [101, 103], "train", "the two boxes", no_target=False),
    reference(2, [-1], "train", "the giraffe", image_id=VOC, no_target=True),
    reference(3, [203], "val", "one chair", no_target=False),
]


def run(folder: Path, references: list[dict] = REFERENCES, **options: Any) -> int:
    (folder / "grefcoco").mkdir(exist_ok=True)
    (folder / "grefcoco" / "grefs(unc).json").write_text(json.dumps(references))
    (folder / "grefcoco" / "instances.json").write_text(json.dumps(instances()))
    images = write_images(folder / "train2014")
    return status_of(grefcoco, folder / "grefcoco", images, folder / "out", workers=1, **options)


def test_several_targets_are_several_masks_and_none_is_no_mask(tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    several, none = rows_of(tmp_path / "out" / "train.parquet")
    annotations = instances()["annotations"]
    polygons = [annotation["segmentation"] for annotation in annotations if annotation["id"] in (101, 103)]
    for counts, outlines in zip(several.masks, polygons, strict=True):
        assert np.array_equal(decode_rle(counts, (480, 640)), polygon_mask(outlines, (480, 640)))
    assert len(several.boxes) == len(several.points) == 2 and several.source["ann_id"] == "101,103"
    assert none.sentence == "the giraffe" and none.masks == [] and none.boxes == [] and none.width == 500
    assert not union_rle(none.masks, (none.height, none.width)).any()
    (single,) = rows_of(tmp_path / "out" / "val.parquet")
    assert len(single.masks) == 1


def test_contradictions_about_the_target_are_reported(tmp_path: Path) -> None:
    references = [
        *REFERENCES,
        reference(5, [101], "train", "a", "b", no_target=True),
        reference(6, [-1], "train", "c", image_id=ARC, no_target=False),
        reference(7, [101, 203], "train", "d", no_target=False),
    ]
    assert run(tmp_path, references, split=["train"]) == 3
    problems = problems_of(tmp_path / "out" / "train.parquet")
    assert sorted((problem["record"], problem["field"], problem["rows"]) for problem in problems) == [
        ("annotation 203 of ref_id 7", "image_id", 1),
        ("ref_id 5", "no_target", 2),
        ("ref_id 6", "no_target", 1),
    ]
    assert len(rows_of(tmp_path / "out" / "train.parquet")) == 2


def test_a_missing_or_broken_file_is_named(tmp_path: Path, capsys) -> None:
    run(tmp_path)
    (tmp_path / "grefcoco" / "grefs(unc).json").write_text("[{")
    status = status_of(grefcoco, tmp_path / "grefcoco", tmp_path / "train2014", tmp_path / "out", workers=1)
    assert status == 1 and "grefs(unc).json: not readable as JSON" in capsys.readouterr().err
    (tmp_path / "grefcoco" / "grefs(unc).json").unlink()
    status = status_of(grefcoco, tmp_path / "grefcoco", tmp_path / "train2014", tmp_path / "out", workers=1)
    assert status == 1 and "grefs(unc).json: no such file" in capsys.readouterr().err
