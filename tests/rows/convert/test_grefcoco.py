"""gRefCOCO: sentences about several objects keep them apart, sentences about none have none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


def run(
    folder: Path, references: list[dict] = REFERENCES, content: dict[str, Any] | None = None, **options: Any
) -> int:
    (folder / "grefcoco").mkdir(exist_ok=True)
    (folder / "grefcoco" / "grefs(unc).json").write_text(json.dumps(references))
    (folder / "grefcoco" / "instances.json").write_text(json.dumps(content or instances()))
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


def official_mask(ids: list[int], content: dict[str, Any]) -> np.ndarray:
    """The merged mask of a reference by the description of the data set's API: the sum of its objects without crowds,
    each the sum of its polygons."""
    anns = {annotation["id"]: annotation for annotation in content["annotations"]}
    images = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    masks = [polygon_mask(anns[i]["segmentation"], images[anns[i]["image_id"]]) for i in ids if not anns[i]["iscrowd"]]
    return np.sum(masks, axis=0) > 0


def changed(**segmentations: Any) -> dict[str, Any]:
    """The instances with other segmentations, by annotation id: polygons, or None for a crowd."""
    content = instances()
    for annotation in content["annotations"]:
        if f"a{annotation['id']}" in segmentations:
            polygons = segmentations[f"a{annotation['id']}"]
            annotation.update({"iscrowd": 1} if polygons is None else {"segmentation": polygons})
    return content


LINE, CROSSED = [[5, 5, 9, 9, 7, 7]], [[10, 10, 20, 20, 20, 10, 10, 20]]


@pytest.mark.parametrize(
    ("ids", "content", "kept", "field"),
    [
        ([201, 202, 203], instances(), [201, 203], "iscrowd"),
        ([101, 103], changed(a103=None), [101], "iscrowd"),
        ([101, 102, 103], changed(a102=LINE), [101, 103], "segmentation"),
        ([101, 103], changed(a101=CROSSED), [101, 103], None),
        ([101, 103], changed(a101=[*LINE, *CROSSED]), [101, 103], "segmentation"),
        ([203], instances(), [203], None),
    ],
)
def test_a_sentence_keeps_the_objects_that_the_official_api_keeps(
    tmp_path: Path, ids: list[int], content: dict, kept: list[int], field: str | None
) -> None:
    assert run(tmp_path, [reference(1, ids, "train", "a", "b", no_target=False)], content) == (3 if field else 0)
    first, second = rows_of(tmp_path / "out" / "train.parquet")
    assert first.masks == second.masks and len(first.masks) == len(kept)
    assert first.source["ann_id"] == ",".join(map(str, kept))
    union = union_rle(first.masks, (first.height, first.width))
    assert np.array_equal(union, official_mask(ids, content))
    problems = problems_of(tmp_path / "out" / "train.parquet")
    assert [(problem["field"], problem["rows"]) for problem in problems] == ([(field, 0)] if field else [])


@pytest.mark.parametrize(
    ("ids", "content", "field"),
    [
        ([202], instances(), "iscrowd"),
        ([101, 103], changed(a101=None, a103=None), "iscrowd"),
        ([101, 103], changed(a101=LINE, a103=LINE), "segmentation"),
        ([101, 103], changed(a101=LINE, a103=[[1, 2, 3]]), "segmentation"),
        ([101, 999], instances(), "ann_id"),
    ],
)
def test_a_sentence_whose_objects_all_fall_away_is_left_out_and_not_made_one_without_a_target(
    tmp_path: Path, ids: list[int], content: dict, field: str
) -> None:
    references = [*REFERENCES, reference(9, ids, "train", "a", "b", no_target=False)]
    assert run(tmp_path, references, content, split=["train"]) == 3
    lost = [problem for problem in problems_of(tmp_path / "out" / "train.parquet") if "ref_id 9" in problem["record"]]
    assert [(problem["field"], problem["rows"]) for problem in lost] == [(field, 2)]
    assert not [row for row in rows_of(tmp_path / "out" / "train.parquet") if row.source["ref_id"] == "9"]


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
    assert status == 1 and "grefs(unc).json: not readable" in capsys.readouterr().err
    (tmp_path / "grefcoco" / "grefs(unc).json").unlink()
    status = status_of(grefcoco, tmp_path / "grefcoco", tmp_path / "train2014", tmp_path / "out", workers=1)
    assert status == 1 and "grefs(unc).json: no such" in capsys.readouterr().err
