"""MUSE and MMR: a question is a row with a mask per object, and their union is the mask of the publishers' code."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from samr1_verl.cli.convert import mmr, muse
from samr1_verl.geometry.masks import decode_rle, union_rle
from tests.rows.convert.sources import (
    ARC,
    NAMES,
    VOC,
    photographs,
    polygon_mask,
    polygons_of,
    problems_of,
    rows_of,
    status_of,
)

SIZES = {ARC: (480, 640), VOC: (375, 500)}
COMMANDS = {"muse": muse, "mmr": mmr}


def rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed RLE as JSON holds it."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def answer(kind: str, key: int, number: int, **changes: Any) -> dict[str, Any]:
    """An object of an answer: polygons in MUSE, RLE in MMR."""
    mask = photographs()[key][1][number]
    segmentation = polygons_of(mask) if kind == "muse" else rle(mask)
    names = {"category_name": f"thing {number}", "rephrased_name": f"the thing {number}"}
    return {"id": 10 * key + number, "bbox": [0, 0, 9, 9], "segmentation": segmentation, **names, **changes}


def entry(kind: str, key: int, questions: list[str], answers: list, **changes: Any) -> dict[str, Any]:
    """An image of the file. In MUSE, some images have a file name in train2014, others only a URL of COCO 2017."""
    height, width = SIZES[key]
    content = {"height": height, "width": width, "questions": questions, "answers": answers, "neg_category_ids": [1]}
    if kind == "mmr":
        content |= {"file_name": f"val2017/{key:012d}.jpg", "image_id": key, "annotations": [], "text_answers": []}
    elif key == ARC:
        content |= {"file_name": NAMES[ARC], "id": key, "ann_list": []}
    else:
        content |= {"coco_url": f"http://images.cocodataset.org/val2017/{key:012d}.jpg", "id": key, "ann_list": []}
    return {**content, **changes}


def run(kind: str, folder: Path, *entries: Any, **options: Any) -> int:
    for name in ("train2014", "val2017"):
        (folder / "coco" / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(photographs()[ARC][0]).save(folder / "coco" / "train2014" / NAMES[ARC])
    for key in SIZES:
        Image.fromarray(photographs()[key][0]).save(folder / "coco" / "val2017" / f"{key:012d}.jpg")
    (folder / "questions.json").write_text(json.dumps(entries))
    places = {
        "annotations": folder / "questions.json",
        "images": folder / "coco",
        "out": folder / "out" / "val.parquet",
    }
    return status_of(COMMANDS[kind], **places, workers=1, **options)


def official_mask(answers: list[dict], size: tuple[int, int]) -> np.ndarray:
    """The pixels of a question by the publishers' rule: those of any polygon, or any RLE, of its objects."""
    masks = []
    for item in answers:
        segmentation = item["segmentation"]
        if isinstance(segmentation, dict):
            counts = segmentation["counts"].encode("ascii")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # under NumPy 2
                masks.append(coco_mask.decode({"size": segmentation["size"], "counts": counts}))
        else:
            masks.append(polygon_mask(segmentation, size))
    return np.sum(masks, axis=0) > 0


@pytest.mark.parametrize("kind", COMMANDS)
def test_each_question_is_a_row_with_its_objects(tmp_path: Path, kind: str) -> None:
    several, single = [answer(kind, ARC, 0), answer(kind, ARC, 2)], [answer(kind, ARC, 0)]
    third = [answer(kind, VOC, number) for number in (3, 4, 5)]
    entries = [
        entry(kind, ARC, ["what holds?", "what is left?"], [several, single]),
        entry(kind, VOC, ["who?"], [third]),
    ]
    assert run(kind, tmp_path, *entries) == 0
    rows = rows_of(tmp_path / "out" / "val.parquet")
    assert [(row.sentence, len(row.masks)) for row in rows] == [("what holds?", 2), ("what is left?", 1), ("who?", 3)]
    for row, answers, key in zip(rows, (several, single, third), (ARC, ARC, VOC), strict=True):
        assert np.array_equal(union_rle(row.masks, SIZES[key]), official_mask(answers, SIZES[key]))
        for counts, item in zip(row.masks, answers, strict=True):
            assert np.array_equal(decode_rle(counts, SIZES[key]), official_mask([item], SIZES[key]))
        assert row.data_source == kind and row.source["ann_id"] == ",".join(str(item["id"]) for item in answers)
    assert rows[0].category == "thing 0, thing 2" and rows[0].source["image_id"] == "1"
    assert rows[1].source["question"] == "1"


def test_an_object_without_a_pixel_leaves_the_others(tmp_path: Path) -> None:
    empty = answer("muse", ARC, 1, segmentation=[[5, 5, 9, 9, 7, 7]])
    crossed = answer("muse", ARC, 2, segmentation=[[10, 10, 20, 20, 20, 10, 10, 20], [1, 2, 3, 4]])
    assert run("muse", tmp_path, entry("muse", ARC, ["a", "b"], [[empty, crossed], [empty]])) == 3
    (row,) = rows_of(tmp_path / "out" / "val.parquet")
    assert decode_rle(row.masks[0], SIZES[ARC]).sum() == 50 and row.source["ann_id"] == "12"
    problems = problems_of(tmp_path / "out" / "val.parquet")
    assert [(problem["record"], problem["rows"]) for problem in problems] == [
        ("[0], answers[0]", 0),
        ("[0], answers[0]", 0),
        ("[0], answers[1]", 1),
    ]


@pytest.mark.parametrize(
    ("changes", "field", "rows"),
    [
        ({"answers": [[answer("mmr", ARC, 0)]]}, "answers", 1),
        ({"answers": [[], [answer("mmr", ARC, 0)]]}, "answers", 1),
        ({"answers": [[answer("mmr", ARC, 0)]] * 3}, "answers", 0),
        ({"answers": None}, "answers", 1),
        ({"questions": "a"}, "questions", 1),
        ({"questions": ["a", " "]}, "sentence", 1),
        ({"height": 481}, "size", 2),
        ({"width": "640"}, "width", 2),
        ({"file_name": "val2017/none.jpg"}, "image", 2),
        ({"file_name": "../../etc/passwd"}, "image", 2),
    ],
)
def test_bad_entries_are_named_and_good_ones_written(tmp_path: Path, changes: dict, field: str, rows: int) -> None:
    item = [answer("mmr", ARC, 0)]
    good, bad = entry("mmr", VOC, ["x"], [[answer("mmr", VOC, 4)]]), entry("mmr", ARC, ["a", "b"], [item, item])
    assert run("mmr", tmp_path, good, {**bad, **changes}) == 3
    (problem,) = problems_of(tmp_path / "out" / "val.parquet")
    assert problem["file"].endswith("questions.json") and problem["record"].startswith("[1]")
    assert (problem["field"], problem["rows"]) == (field, rows)
    assert rows_of(tmp_path / "out" / "val.parquet")[0].sentence == "x"


def test_a_file_of_another_form_is_named(tmp_path: Path, capsys) -> None:
    assert run("muse", tmp_path, "text", 3) == 1
    assert f"{tmp_path / 'out' / 'val.parquet'}: " in (said := capsys.readouterr().err) and "val.problems.jsonl" in said
    assert [problem["field"] for problem in problems_of(tmp_path / "out" / "val.parquet")] == ["entry", "entry"]
    (tmp_path / "questions.json").write_text("[{")
    places = {"annotations": tmp_path / "questions.json", "images": tmp_path / "coco", "out": tmp_path / "x.parquet"}
    assert status_of(muse, **places, workers=1) == 1
    assert "questions.json: not readable" in capsys.readouterr().err
