"""ReasonSeg: masks as LISA paints them, ignored pixels apart from the target."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from samr1_verl.cli.convert import reasonseg
from samr1_verl.geometry.masks import decode_rle, intersection_union
from samr1_verl.rows.ground_truth import GroundTruth
from tests.rows.convert.sources import ARC, VOC, photographs, polygons_of, problems_of, rows_of, status_of

BOX = [[100, 100], [300, 100], [300, 300], [100, 300]]
HOLE = [[150.7, 150.2], [250.9, 150.2], [250.9, 250.1], [150.7, 250.1]]


def shape(label: str, points: Any) -> dict[str, Any]:
    more = {"labels": [label], "shape_type": "polygon", "group_id": None, "group_ids": [None], "flags": {}}
    return {"label": label, "points": points, "image_name": "a.jpg", **more}


def write(folder: Path, name: str, shapes: list, texts: Any = ("What holds water?", "The thing to drink from"), **more):
    """NAME.jpg and NAME.json as LISA ships them."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photographs()[more.pop("image", ARC)][0]).save(folder / f"{name}.jpg")
    content = {"text": list(texts), "is_sentence": True, "shapes": shapes, **more}
    (folder / f"{name}.json").write_text(json.dumps(content))


def run(folder: Path, **options: Any) -> int:
    return status_of(reasonseg, folder / "ReasonSeg", folder / "out", workers=1, **options)


def test_real_polygons_become_the_target_for_each_sentence(tmp_path: Path) -> None:
    mask = photographs()[VOC][1][9]
    outlines = [np.reshape(polygon, (-1, 2)).tolist() for polygon in polygons_of(mask)]
    write(tmp_path / "ReasonSeg" / "val", "a", [shape("target", outline) for outline in outlines], image=VOC)
    assert run(tmp_path) == 0
    rows = rows_of(tmp_path / "out" / "val.parquet")
    assert [row.sentence for row in rows] == ["What holds water?", "The thing to drink from"]
    painted = decode_rle(rows[0].masks[0], mask.shape)
    intersection, union = intersection_union(painted, mask)
    assert intersection / union > 0.95 and len(rows[0].masks) == 1 and rows[0].ignore is None
    assert rows[0].source == {"split": "val", "name": "a", "sentence": "0", "is_sentence": "True"}
    assert run(tmp_path, first_sentence=True) == 0
    assert [row.sentence for row in rows_of(tmp_path / "out" / "val.parquet")] == ["What holds water?"]


@pytest.mark.parametrize("order", [1, -1])
def test_smaller_shapes_lie_on_top_and_ignored_pixels_are_no_object(tmp_path: Path, order: int) -> None:
    shapes = [shape("target", BOX), shape("Ignore", HOLE), shape("flag", [[0, 0], [600, 0], [600, 400]])]
    write(tmp_path / "ReasonSeg" / "test", "a", shapes[::order])
    assert run(tmp_path) == 0
    row = rows_of(tmp_path / "out" / "test.parquet")[0]
    target, ignore = (decode_rle(counts, (480, 640)) for counts in (row.masks[0], row.ignore))
    expected = np.zeros((480, 640), np.uint8)
    cv2.fillPoly(expected, np.array([BOX], np.int32), 1)
    cv2.fillPoly(expected, np.array([HOLE], np.int32), 255)
    assert np.array_equal(target, expected == 1) and np.array_equal(ignore, expected == 255)
    assert not (target & ignore).any()
    # Ignored pixels count neither for nor against a prediction that covers them.
    truth = GroundTruth.model_validate_json(row.ground_truth())
    assert intersection_union(target | ignore, *truth.union_and_ignore()) == (target.sum(), target.sum())


def test_every_split_is_written_and_others_are_named(tmp_path: Path, capsys) -> None:
    for split in ("train", "val", "explanatory"):
        write(tmp_path / "ReasonSeg" / split, "a", [shape("target", BOX)])
    assert run(tmp_path) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.parquet", "val.parquet"}
    assert run(tmp_path, split=["test"]) == 1
    assert "no split test" in (said := capsys.readouterr().err) and "train, val" in said


def test_files_in_cp1252_and_images_turned_by_exif_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "ReasonSeg" / "val"
    write(folder, "a", [shape("target", BOX)])
    content = (folder / "a.json").read_text().replace("water?", "caf\u00e9?")
    (folder / "a.json").write_bytes(content.encode("cp1252"))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(photographs()[ARC][0]).transpose(Image.Transpose.ROTATE_90)
    image.save(folder / "a.jpg", exif=exif)
    assert run(tmp_path) == 0
    row = rows_of(tmp_path / "out" / "val.parquet")[0]
    assert row.sentence == "What holds café?" and (row.width, row.height) == (640, 480)
    assert row.boxes == [[100, 100, 301, 301]], "OpenCV's outlines belong to the polygon, as LISA's do"


@pytest.mark.parametrize(
    ("shapes", "texts", "field", "rows"),
    [
        ([shape("target", [[-2, 1], [-5, 5]]), shape("target", BOX)], ["a", "b"], "shapes", 0),
        ([shape("ignore", BOX)], ["a"], "shapes", 0),
        ([], ["a"], "shapes", 0),
        ([shape("target", [])], ["a"], "shapes[0].points", 1),
        ([shape("target", [[1, 1], [5, 5], [9000, 9]])], ["a"], "shapes[0].points", 1),
        ([shape("target", [1, 2, 3])], ["a"], "shapes[0].points", 1),
        ([{"points": BOX}], ["a"], "shapes[0]", 1),
        ({}, ["a"], "shapes", 1),
        ([shape("target", BOX)], [], "text", 1),
        ([shape("target", BOX)], ["a", " "], "sentence", 1),
        ([shape("target", BOX)], ["a", "x" * 10_240], "sentence", 1),
    ],
)
def test_bad_annotations_are_named(tmp_path: Path, shapes: Any, texts: list, field: str, rows: int) -> None:
    write(tmp_path / "ReasonSeg" / "val", "bad", shapes, texts)
    write(tmp_path / "ReasonSeg" / "val", "good", [shape("target", BOX)])
    assert run(tmp_path) == 3
    (problem,) = problems_of(tmp_path / "out" / "val.parquet")
    assert problem["file"].endswith("val/bad.json") and (problem["field"], problem["rows"]) == (field, rows)
    assert run(tmp_path, strict=True) == 1


def test_a_missing_image_and_broken_json_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "ReasonSeg" / "val"
    for name in "abc":
        write(folder, name, [shape("target", BOX)])
    (folder / "a.jpg").unlink()
    (folder / "b.json").write_text('{"text": [')
    assert run(tmp_path) == 3
    problems = problems_of(tmp_path / "out" / "val.parquet")
    assert [(Path(problem["file"]).name, problem["field"]) for problem in problems] == [
        ("a.json", "image"),
        ("b.json", "json"),
    ]
