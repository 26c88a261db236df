"""RefCOCO-M, ReasonSeg-R and ReasonSeg-X in the form that their hub data sets have."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from samr1_verl.cli.convert import hub, refcoco_m
from samr1_verl.geometry.masks import decode_rle
from tests.rows.convert.sources import ARC, VOC, photographs, problems_of, rows_of, status_of
from tests.rows.convert.test_hub import png
from tests.rows.convert.test_multi_target import SIZES, rle


def sample(key: int, number: int, *sentences: Any, **changes: Any) -> dict[str, Any]:
    return {
        "mask": rle(photographs()[key][1][number]),
        "bbox": [1.0, 2.0, 3.0, 4.0],
        "category": f"kind {number}",
        "sentences": list(sentences),
        **changes,
    }


def save(folder: Path, *samples: list[dict]) -> Path:
    keys = (ARC, VOC)[: len(samples)]
    columns = {"image": [png(photographs()[key][0]) for key in keys], "image_id": list(keys), "samples": list(samples)}
    folder.mkdir()
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    data.to_parquet(folder / "validation-00000-of-00001.parquet")
    return folder


def run(folder: Path, dataset: Path) -> int:
    return status_of(refcoco_m, dataset=str(dataset), out=folder / "out" / "val.parquet", workers=1)


def test_each_sentence_of_refcoco_m_is_a_row_with_its_objects_mask(tmp_path: Path) -> None:
    first = [sample(ARC, 0, "left box", "the box"), sample(ARC, 3, "third thing")]
    assert run(tmp_path, save(tmp_path / "set", first, [sample(VOC, 4, "a chair")])) == 0
    rows = rows_of(tmp_path / "out" / "val.parquet")
    assert [row.sentence for row in rows] == ["left box", "the box", "third thing", "a chair"]
    for row, (key, number) in zip(rows, [(ARC, 0), (ARC, 0), (ARC, 3), (VOC, 4)], strict=True):
        assert np.array_equal(decode_rle(row.masks[0], SIZES[key]), photographs()[key][1][number])
        assert row.source["image_id"] == str(key) and row.category == f"kind {number}"
    assert rows[0].sha256 == rows[2].sha256 and rows[0].data_source == "refcoco-m"


@pytest.mark.parametrize(
    ("bad", "field", "rows"),
    [
        ([sample(ARC, 0, "a", "b", mask=rle(np.zeros((480, 640), bool)))], "segmentation", 2),
        ([sample(ARC, 0, "a", "b", mask=rle(np.ones((4, 4), bool)))], "segmentation", 2),
        ([sample(ARC, 0, "a", mask=None)], "mask", 1),
        ([sample(ARC, 0, " ")], "sentence", 1),
    ],
)
def test_bad_samples_of_refcoco_m_are_named(tmp_path: Path, bad: list[dict], field: str, rows: int) -> None:
    assert run(tmp_path, save(tmp_path / "set", bad, [sample(VOC, 4, "a chair")])) == 3
    (problem,) = problems_of(tmp_path / "out" / "val.parquet")
    assert problem["record"].startswith("example 0") and (problem["field"], problem["rows"]) == (field, rows)
    assert [row.sentence for row in rows_of(tmp_path / "out" / "val.parquet")] == ["a chair"]


def test_another_data_set_is_refused_as_refcoco_m(tmp_path: Path, capsys) -> None:
    dataset = save(tmp_path / "set", [sample(ARC, 0, "a")])
    file = next(dataset.iterdir())
    datasets.Dataset.from_dict({"image": ["a.png"], "text": ["a"]}).to_parquet(file)
    assert run(tmp_path, dataset) == 1
    assert "no column samples" in (said := capsys.readouterr().err) and "image, text" in said


def test_star_data_sets_are_read_by_hub(tmp_path: Path) -> None:
    """ReasonSeg-R and -X, and StAR's copies of MUSE and MMR: one image, text and mask of truth values per row."""
    image, masks = photographs()[ARC]
    columns = {
        "image": [png(image)] * 2,
        "text": ["what opens?", "what is eaten?"],
        "mask": [mask.tolist() for mask in masks[:2]],
        "image_id": ["a", "b"],
        "ann_id": ["a", "b"],
        "img_height": [480] * 2,
        "img_width": [640] * 2,
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "mask": datasets.Sequence(datasets.Sequence(datasets.Value("bool"))),
            **{name: datasets.Value("string") for name in ("image_id", "ann_id")},
            **{name: datasets.Value("int64") for name in ("img_height", "img_width")},
        }
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "set")
    options = {"image": "image", "sentence": "text", "mask": "mask", "id_column": "ann_id", "name": "reasonseg-x"}
    assert status_of(hub, dataset=str(tmp_path / "set"), out=tmp_path / "out" / "x.parquet", workers=1, **options) == 0
    rows = rows_of(tmp_path / "out" / "x.parquet")
    for row, mask, name in zip(rows, masks, "ab", strict=False):
        assert np.array_equal(decode_rle(row.masks[0], (480, 640)), mask) and row.source["ann_id"] == name
