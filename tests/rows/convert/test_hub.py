"""Hugging Face data sets: options name the columns, and an ambiguous column is an error that names an option."""

from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from samr1_verl.cli.convert import hub
from samr1_verl.geometry.images import open_image, sha256_of
from samr1_verl.geometry.masks import box_of, decode_rle
from samr1_verl.rows.convert.options import BoxFormat, Exif
from tests.rows.convert.sources import ARC, VOC, photographs, polygon_mask, polygons_of, problems_of, rows_of, status_of


def png(array: np.ndarray) -> dict[str, Any]:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def examples(count: int = 3) -> dict[str, list]:
    """Columns of arc2017's first objects, in every form that converters know."""
    image, masks = photographs()[ARC]
    masks = masks[:count]
    return {
        "image": [png(image)] * count,
        "text": [f"thing {i}" for i in range(count)],
        "mask": [png(mask.astype(np.uint8) * 255) for mask in masks],
        "rows": [mask.tolist() for mask in masks],
        "polygons": [polygons_of(mask) for mask in masks],
        "xyxy": [box_of(mask) for mask in masks],
        "xywh": [[x, y, right - x, bottom - y] for x, y, right, bottom in map(box_of, masks)],
        "kind": ["product"] * count,
        "uid": [f"u{i}" for i in range(count)],
    }


def save(folder: Path, columns: dict[str, list]) -> Path:
    """One parquet file, as data sets of the hub are stored."""
    data = datasets.Dataset.from_dict(columns)
    for name in ("image", "mask"):
        if name in columns and isinstance(columns[name][0], dict):
            data = data.cast_column(name, datasets.Image())
    folder.mkdir(exist_ok=True)
    data.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def run(dataset: Path | str, out: Path, **options: Any) -> int:
    flags = {"image": "image", "sentence": "text", "workers": 1, **options}
    return status_of(hub, dataset=str(dataset), out=out / "rows.parquet", **flags)


@pytest.mark.parametrize("column", ["mask", "rows"])
def test_masks_are_taken_as_images_or_rows_of_pixels(tmp_path: Path, column: str) -> None:
    assert run(save(tmp_path / "set", examples()), tmp_path / "out", mask=column, category="kind", id_column="uid") == 0
    rows = rows_of(tmp_path / "out" / "rows.parquet")
    image, masks = photographs()[ARC]
    assert [row.sentence for row in rows] == ["thing 0", "thing 1", "thing 2"]
    for row, mask in zip(rows, masks, strict=False):
        assert np.array_equal(decode_rle(row.masks[0], mask.shape), mask)
    path = tmp_path / "out" / rows[0].image
    assert rows[0].image == f"images/{rows[0].sha256}.png" and sha256_of(path) == rows[0].sha256
    assert np.array_equal(np.asarray(open_image(path)), image) and len(list(path.parent.iterdir())) == 1
    assert rows[1].category == "product" and rows[1].source == {"example": "1", "sentence": "0", "uid": "u1"}


def test_polygons_and_lists_of_sentences(tmp_path: Path) -> None:
    columns = examples(2)
    columns["text"] = [["one", "the same"], ["another"]]
    columns["several"] = [[polygons, polygons] for polygons in columns["polygons"]]
    assert run(save(tmp_path / "set", columns), tmp_path / "out", segmentation="polygons") == 0
    rows = rows_of(tmp_path / "out" / "rows.parquet")
    assert [row.sentence for row in rows] == ["one", "the same", "another"]
    assert np.array_equal(decode_rle(rows[0].masks[0], (480, 640)), polygon_mask(columns["polygons"][0], (480, 640)))
    assert run(tmp_path / "set", tmp_path / "out", segmentation="several") == 0
    assert len(rows_of(tmp_path / "out" / "rows.parquet")[0].masks) == 2


@pytest.mark.parametrize("box_format", list(BoxFormat))
def test_boxes_without_masks(tmp_path: Path, box_format: BoxFormat) -> None:
    file = save(tmp_path / "set", examples()) / "train-00000-of-00001.parquet"
    assert run(file, tmp_path / "out", box=box_format.value, box_format=box_format) == 0
    rows = rows_of(tmp_path / "out" / "rows.parquet")
    assert [row.boxes[0] for row in rows] == examples()["xyxy"] and rows[0].masks == []


def test_boxes_of_the_wrong_format_are_named(tmp_path: Path) -> None:
    columns = {**examples(), "xywh": [[500.0, 300.0, 100.0, 50.0], [400.0, 300.0, 300.0, 100.0], [1.0, 2.0, 3.0, 4.0]]}
    assert run(save(tmp_path / "set", columns), tmp_path / "out", box="xywh") == 3
    first, second = problems_of(tmp_path / "out" / "rows.parquet")
    assert (first["record"], first["field"]) == ("example 0", "xywh") and "Is it x, y, w, h?" in first["problem"]
    assert "has no area" in second["problem"]


def test_pixels_labelled_255_are_no_object_and_never_guessed(tmp_path: Path) -> None:
    labels = np.zeros((480, 640), np.uint8)
    labels[100:200, 100:200], labels[150:250, 150:250] = 1, 255
    columns = {**examples(2), "mask": [png(labels), examples(2)["mask"][1]]}
    place = save(tmp_path / "set", columns)
    assert run(place, tmp_path / "out", mask="mask") == 3
    (problem,) = problems_of(tmp_path / "out" / "rows.parquet")
    assert problem["field"] == "mask" and "[0, 1, 255]" in problem["problem"] and "--ignore-value" in problem["problem"]
    assert run(place, tmp_path / "out", mask="mask", ignore_value=255) == 3, "the second's object has the value 255"
    (row,) = rows_of(tmp_path / "out" / "rows.parquet")
    assert np.array_equal(decode_rle(row.masks[0], labels.shape), labels == 1)
    assert np.array_equal(decode_rle(row.ignore, labels.shape), labels == 255)


def test_files_of_paths_and_what_save_to_disk_wrote(tmp_path: Path) -> None:
    for key in (ARC, VOC):
        Image.fromarray(photographs()[key][0]).save(tmp_path / f"{key}.png")
    columns = {"image": [str(tmp_path / "1.png"), str(tmp_path / "2.png")], "text": ["a", "b"],
               "polygons": [polygons_of(photographs()[key][1][0]) for key in (ARC, VOC)]}  # fmt: skip
    data = datasets.Dataset.from_dict(columns)
    data.to_json(tmp_path / "rows.jsonl")
    datasets.DatasetDict({"val": data}).save_to_disk(tmp_path / "saved")
    assert run(tmp_path / "rows.jsonl", tmp_path / "a", segmentation="polygons") == 0
    options = {"segmentation": "polygons", "split": "val"}
    assert run(tmp_path / "saved", tmp_path / "b", **options) == 1, "its images lie outside its folder"
    assert run(tmp_path / "saved", tmp_path / "b", **options, images=tmp_path) == 0
    for name in "ab":
        rows = rows_of(tmp_path / name / "rows.parquet")
        assert [row.image for row in rows] == columns["image"] and rows[1].width == 500
    (tmp_path / "2.png").unlink()
    assert run(tmp_path / "rows.jsonl", tmp_path / "c", segmentation="polygons") == 3
    (problem,) = problems_of(tmp_path / "c" / "rows.parquet")
    assert problem["record"] == "example 1" and f"{tmp_path / '2.png'}: no such" in problem["problem"]


def test_boxes_of_images_turned_by_exif_need_to_be_told(tmp_path: Path) -> None:
    exif, buffer = Image.Exif(), BytesIO()
    exif[0x0112] = 6
    image, masks = photographs()[ARC]
    Image.fromarray(image).transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", exif=exif)
    stored = np.rot90(masks[0])
    columns = {"image": [{"bytes": buffer.getvalue(), "path": None}, png(image)], "text": ["a", "b"],
               "box": [box_of(stored), box_of(masks[0])]}  # fmt: skip
    place = save(tmp_path / "set", columns)
    assert run(place, tmp_path / "out", box="box") == 3
    (problem,) = problems_of(tmp_path / "out" / "rows.parquet")
    assert problem["field"] == "orientation"
    assert run(place, tmp_path / "out", box="box", exif=Exif.stored) == 0
    assert [row.boxes[0] for row in rows_of(tmp_path / "out" / "rows.parquet")] == [box_of(masks[0])] * 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mask": png(np.ones((10, 10), np.uint8))}, "size"),
        ({"mask": png(np.zeros((480, 640), np.uint8))}, "mask"),
        ({"mask": {"bytes": b"no image", "path": None}}, "mask"),
        ({"image": {"bytes": b"no image", "path": None}}, "image"),
        ({"text": ""}, "text"),
        ({"text": None}, "text"),
    ],
)
def test_bad_examples_are_named(tmp_path: Path, change: dict, field: str) -> None:
    columns = examples(2)
    for name, value in change.items():
        columns[name][0] = value
    assert run(save(tmp_path / "set", columns), tmp_path / "out", mask="mask") == 3
    (problem,) = problems_of(tmp_path / "out" / "rows.parquet")
    assert (problem["record"], problem["field"]) == ("example 0", field)


def test_wrong_flags_say_what_is_there(tmp_path: Path, capsys) -> None:
    place = save(tmp_path / "set", examples(1))
    for options, *names in (
        ({"mask": "masks"}, "no column masks", "image, text, mask"),
        ({}, "--mask, --segmentation and --box", "exactly one"),
        ({"mask": "mask", "split": "val"}, "--split val"),
        ({"mask": "mask", "dataset": tmp_path / "set.txt"}, "set.txt"),
    ):
        assert run(options.pop("dataset", place), tmp_path / "out", **options) == 1
        said = capsys.readouterr().err
        assert all(name in said for name in names), said
