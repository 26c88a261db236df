"""COCO instances files: a row per category with all its objects, or a row per described annotation."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from samr1_verl.cli.convert import coco
from samr1_verl.geometry.masks import decode_rle, union_rle
from tests.rows.convert.sources import (
    ARC,
    NAMES,
    VOC,
    instances,
    photographs,
    polygon_mask,
    problems_of,
    rows_of,
    status_of,
    write_images,
)


def run(folder: Path, content: dict | None = None, images: Path | None = None, **options: Any) -> int:
    (folder / "instances.json").write_text(json.dumps(content or instances()))
    images = images or write_images(folder / "images")
    return status_of(coco, folder / "instances.json", images, folder / "out.parquet", workers=1, **options)


def test_a_category_is_a_row_with_all_its_objects_and_crowds_do_not_count(tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    product, can = rows_of(tmp_path / "out.parquet")
    assert (product.sentence, can.sentence) == ("the product", "the aerosol can")
    assert len(product.masks) == len(photographs()[ARC][1]) and product.ignore is None
    for counts, annotation in zip(product.masks, instances()["annotations"], strict=False):
        mask = polygon_mask(annotation["segmentation"], (480, 640))
        assert np.array_equal(decode_rle(counts, (480, 640)), mask)
    masks = photographs()[VOC][1]
    assert len(can.masks) == len(masks) - 1
    assert np.array_equal(decode_rle(can.ignore, masks[0].shape), masks[1])
    assert product.image == "images/" + NAMES[ARC], "images below the file's folder move with it"
    assert union_rle(can.masks, masks[0].shape).any()


def test_a_column_describes_each_annotation(tmp_path: Path) -> None:
    content = instances()
    content["annotations"] = content["annotations"][:3]
    content["annotations"][0]["caption"] = "the green one"
    content["annotations"][1]["caption"] = ["the red one", "left of the green one"]
    assert run(tmp_path, content, column="caption", name="mine") == 3
    rows = rows_of(tmp_path / "out.parquet")
    assert [row.sentence for row in rows] == ["the green one", "the red one", "left of the green one"]
    assert rows[2].source == {"image_id": "1", "ann_id": "102", "sentence": "1"} and rows[0].data_source == "mine"
    (problem,) = problems_of(tmp_path / "out.parquet")
    assert (problem["record"], problem["field"]) == ("annotation 103 of image 1", "caption")


def test_lvis_files_are_read(tmp_path: Path) -> None:
    content = instances()
    for image in content["images"]:
        name = image.pop("file_name")
        image["coco_url"] = f"http://images.cocodataset.org/train2014/{name}"
        image["not_exhaustive_category_ids"] = [2] if image["id"] == VOC else []
        image["neg_category_ids"] = [3]
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    for number, category in enumerate(content["categories"]):
        category.update(synset="x", synonyms=["y"], frequency="f", image_count=number)
    write_images(tmp_path / "coco" / "train2014")
    assert run(tmp_path, content, images=tmp_path / "coco", sentence="segment the {category}") == 3
    (row,) = rows_of(tmp_path / "out.parquet")
    assert row.sentence == "segment the product"
    (problem,) = problems_of(tmp_path / "out.parquet")
    assert problem["field"] == "not_exhaustive_category_ids" and problem["rows"] == 1
    assert run(tmp_path, content, images=tmp_path / "coco" / "train2014") == 3, "the folder itself will do"


def test_compressed_run_lengths_are_read(tmp_path: Path) -> None:
    from samr1_verl.geometry.masks import encode_rle

    content = instances()
    mask = photographs()[ARC][1][0]
    content["annotations"] = [
        {**content["annotations"][0], "segmentation": {"size": [480, 640], "counts": encode_rle(mask)}}
    ]
    assert run(tmp_path, content) == 0
    assert np.array_equal(decode_rle(rows_of(tmp_path / "out.parquet")[0].masks[0], (480, 640)), mask)


def test_bad_entries_are_named(tmp_path: Path, capsys) -> None:
    content = instances()
    content["annotations"][0]["category_id"] = 77
    content["annotations"][1]["image_id"] = 5
    content["annotations"][8]["segmentation"] = [[1, 1, 2, 2, 3, 3]]
    assert run(tmp_path, content) == 3
    reported = {(problem["record"], problem["field"]) for problem in problems_of(tmp_path / "out.parquet")}
    assert reported == {
        ("annotation 101 of image 1", "category_id"),
        ("image 5", "image_id"),
        ("annotation 201 of image 2", "segmentation"),
    }
    for key, change, *names in (
        ("images", lambda images: images[0].pop("width"), "images[0]: ", "'width'"),
        ("annotations", lambda annotations: annotations.append(annotations[0]), "annotations[", "id appears twice"),
        ("categories", lambda categories: categories.clear(), "no categories"),
        ("images", lambda images: images.insert(1, 7), "images[1]: "),
    ):
        content = instances()
        content["categories"] = [dict(category) for category in content["categories"]]
        change(content[key])
        assert run(tmp_path, content) == 1
        said = capsys.readouterr().err
        assert all(name in said for name in ("instances.json: ", *names)), said


def test_options_that_cannot_work_are_refused(tmp_path: Path, capsys) -> None:
    assert run(tmp_path, sentence="the thing") == 1
    assert "--sentence: found 'the thing'" in (said := capsys.readouterr().err) and "{category}" in said
    assert run(tmp_path, images=tmp_path / "nowhere") == 1
    assert "--images: " in (said := capsys.readouterr().err) and str(tmp_path / "nowhere") in said
