"""RefCOCO, RefCOCO+, RefCOCOg: every sentence becomes a true row, or is listed as a problem."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samr1_verl.cli.convert import refcoco
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.rows.convert.options import Exif
from tests.rows.convert.sources import (
    ARC,
    NAMES,
    REFERENCES,
    VOC,
    instances,
    photographs,
    polygon_mask,
    problems_of,
    python2_pickle,
    reference,
    rows_of,
    status_of,
    write_images,
    write_refer,
)


def run(folder: Path, references: list[dict] | None = None, content: dict | None = None, **options: Any) -> int:
    """Convert a folder of the REFER toolkit below `folder` to `folder`/out and return the exit status."""
    if not (folder / "train2014").is_dir():
        write_images(folder / "train2014")
    write_refer(folder / "refcoco", references, content)
    return convert(folder, **options)


def convert(folder: Path, **options: Any) -> int:
    places = {"annotations": folder / "refcoco", "images": folder / "train2014", "out": folder / "out"}
    return status_of(refcoco, **{**places, "workers": 1, **options})


def mask_of(row) -> np.ndarray:
    return decode_rle(row.masks[0], (row.height, row.width))


def test_every_split_has_a_row_for_each_sentence(tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.parquet", "val.parquet", "testA.parquet"}
    train = rows_of(tmp_path / "out" / "train.parquet")
    assert [row.sentence for row in train] == ["the box on the left", "left box", "the third thing"]
    image, masks = photographs()[ARC]
    row = train[0]
    assert (row.height, row.width) == image.shape[:2]
    assert row.sha256 == sha256_of(tmp_path / "train2014" / NAMES[ARC]) and row.data_source == "refcoco"
    assert np.array_equal(mask_of(row), polygon_mask(instances()["annotations"][0]["segmentation"], image.shape[:2]))
    assert np.count_nonzero(mask_of(row) & masks[0]) / np.count_nonzero(mask_of(row) | masks[0]) > 0.97
    assert all(mask_of(row)[int(y), int(x)] for x, y in row.points[0]) and len(row.points[0]) == 2
    assert row.category == "product"
    assert row.source == {"split": "train", "image_id": "1", "ref_id": "1", "sent_id": "10", "ann_id": "101"}


def test_crowds_are_run_lengths_and_sentences_may_have_accents(tmp_path: Path) -> None:
    run(tmp_path, split=["val"])
    rows = rows_of(tmp_path / "out" / "val.parquet")
    assert [row.sentence for row in rows] == ["the chair in the crowd", "café chair"]
    assert np.array_equal(mask_of(rows[0]), photographs()[VOC][1][1])
    assert not (tmp_path / "out" / "train.parquet").exists()


def test_overlapping_polygons_are_united(tmp_path: Path) -> None:
    content = instances()
    squares = [[10, 10, 50, 10, 50, 50, 10, 50], [30, 30, 70, 30, 70, 70, 30, 70]]
    content["annotations"][0]["segmentation"] = squares
    run(tmp_path, content=content)
    mask = mask_of(rows_of(tmp_path / "out" / "train.parquet")[0])
    assert mask.sum() == pytest.approx(40 * 40 * 2 - 20 * 20, rel=0.02)
    assert mask[40, 40], "the overlap belongs to the object"


def test_a_sample_is_the_same_for_the_same_seed_and_lists_its_sentences(tmp_path: Path) -> None:
    many = [reference(i, 100 + 1 + i % 8, "train", f"thing {i}", f"object {i}") for i in range(1, 40)]
    sentences = {}
    for name, seed, references in (("a", 1, many), ("b", 1, many[::-1]), ("c", 2, many)):
        assert run(tmp_path, references, sample=20, seed=seed, out=tmp_path / name) == 0
        rows = rows_of(tmp_path / name / "train.parquet")
        sentences[name] = {row.sentence for row in rows}
        listed = json.loads((tmp_path / name / "train.sample.json").read_text())
        assert listed["seed"] == seed and len(rows) == 20
        assert {(str(entry["ref_id"]), str(entry["sent_id"])) for entry in listed["sentences"]} == {
            (row.source["ref_id"], row.source["sent_id"]) for row in rows
        }
    assert sentences["a"] == sentences["b"] != sentences["c"]


def test_a_sample_leaves_other_splits_whole_and_cannot_be_larger_than_train(tmp_path: Path, capsys) -> None:
    assert run(tmp_path, sample=1) == 0
    assert [len(rows_of(tmp_path / "out" / f"{s}.parquet")) for s in ("train", "val", "testA")] == [1, 2, 1]
    assert run(tmp_path, sample=4) == 1
    assert "--sample 4: split train" in (said := capsys.readouterr().err) and "3 sentences" in said


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, capsys) -> None:
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was_run",)

    write_images(tmp_path / "train2014")
    write_refer(tmp_path / "refcoco")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Malicious()], protocol))
        assert convert(tmp_path) == 1
        assert "refs(unc).p: refused (it asks" in capsys.readouterr().err
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (python2_pickle(REFERENCES)[:-40], "refused"),
        (b"", "refused"),
        (python2_pickle({"a": 1}), "holds a dict"),
        (python2_pickle([]), "holds no references"),
    ],
)
def test_a_broken_pickle_is_named(tmp_path: Path, capsys, content: bytes, message: str) -> None:
    write_images(tmp_path / "train2014")
    (write_refer(tmp_path / "refcoco") / "refs(unc).p").write_bytes(content)
    assert convert(tmp_path) == 1
    assert f"refs(unc).p: {message}" in capsys.readouterr().err


def test_wrong_places_and_splits_say_what_is_there(tmp_path: Path, capsys) -> None:
    run(tmp_path)
    for options, *names in (
        ({"split": ["test"]}, "refs(unc).p: no split test", "testA, train, val"),
        ({"split_by": "umd"}, "refs(umd).p: no such", ": refs(unc).p"),
        ({"images": tmp_path / "none"}, "--images: no folder", str(tmp_path / "none")),
    ):
        assert convert(tmp_path, **options) == 1
        said = capsys.readouterr().err
        assert all(name in said for name in names), said
    (tmp_path / "refcoco" / "instances.json").unlink()
    assert convert(tmp_path) == 1
    assert "instances.json: no such" in capsys.readouterr().err
    (tmp_path / "refcoco" / "instances.json").write_text('{"images": [')
    assert convert(tmp_path) == 1
    assert "instances.json: not readable" in capsys.readouterr().err


def _annotation(index: int, **changes: Any) -> dict:
    content = instances()
    content["annotations"][index].update(changes)
    return content


BAD = [reference(9, 104, "train", "still good")]
FLAWED: dict[str, tuple[Any, Any, str, str, str, int]] = {
    # name: references, instances, file, record, field, rows left out
    "another image": (None, _annotation(0, image_id=VOC), "instances.json", "annotation 101", "image_id", 2),
    "zero area": (None, _annotation(0, segmentation=[[5, 5, 9, 9, 7, 7]]), "instances.json", "annotation 101",
                  "segmentation", 2),
    "two corners": (None, _annotation(0, segmentation=[[5, 5, 9, 9]]), "instances.json", "101", "segmentation", 2),
    "odd polygon": (None, _annotation(0, segmentation=[[5, 5, 9, 9, 3]]), "instances.json", "101", "segmentation", 2),
    "far away": (None, _annotation(0, segmentation=[[5, 5, 9e6, 9, 3, 8]]), "instances.json", "101", "segmentation", 2),
    "no polygon": (None, _annotation(0, segmentation=[]), "instances.json", "101", "segmentation", 2),
    "run lengths of another size": (None, _annotation(0, segmentation={"size": [480, 640], "counts": [3, 4]}),
                                    "instances.json", "101", "segmentation", 2),
    "RLE turned": (None, _annotation(0, segmentation={"size": [640, 480], "counts": "abc"}), "instances.json", "101",
                   "segmentation", 2),
    "no annotation": ([*BAD, reference(5, 999, "train", "a", image_id=ARC)], None, "instances.json", "annotation 999",
                      "ann_id", 1),
    "no image": ([*BAD, reference(5, 101, "train", "a", image_id=7)], None, "instances.json", "image 7", "image_id", 1),
    "empty sentence": ([*BAD, reference(5, 101, "train", "  ")], None, "refs(unc).p", "sent_id 50", "sentence", 1),
    "long sentence": ([*BAD, reference(5, 101, "train", "x" * 10_240)], None, "refs(unc).p", "sent_id 50", "sentence",
                      1),
    "wrong bytes": ([*BAD, reference(5, 101, "train", "caf\udce9")], None, "refs(unc).p", "sent_id 50", "sentence", 1),
    "no split": ([*BAD, {k: v for k, v in reference(5, 101, "train", "a").items() if k != "split"}], None,
                 "refs(unc).p", "ref_id 5", "split", 1),
    "same id twice": ([*BAD, reference(9, 105, "train", "a")], None, "refs(unc).p", "ref_id 9", "ref_id", 1),
    "no reference": ([*BAD, "text"], None, "refs(unc).p", "reference 1", "ref", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAWED)
def test_bad_input_is_named_and_good_rows_are_written(tmp_path: Path, capsys, name: str) -> None:
    references, content, file, record, field, left_out = FLAWED[name]
    assert run(tmp_path, references, content, split=["train"]) == 3
    (problem,) = problems_of(tmp_path / "out" / "train.parquet")
    assert problem["file"].endswith(file) and record in problem["record"] and problem["field"] == field
    assert problem["rows"] == left_out
    assert len(rows_of(tmp_path / "out" / "train.parquet")) == 1
    assert f"problems: 1, rows left out: {left_out}" in capsys.readouterr().out
    assert run(tmp_path, references, content, split=["train"], strict=True, out=tmp_path / "strict") == 1
    assert "--strict: " in (said := capsys.readouterr().err) and f"field {field!r}" in said
    assert not list((tmp_path / "strict").glob("*.parquet"))


def test_a_part_without_pixels_is_reported_and_its_object_kept(tmp_path: Path) -> None:
    good = [[10, 10, 50, 10, 50, 50, 10, 50]]
    assert run(tmp_path, content=_annotation(0, segmentation=[[5, 5, 9, 9, 7, 7], *good])) == 3
    (problem,) = problems_of(tmp_path / "out" / "train.parquet")
    assert problem["problem"].startswith("polygon 0 of 2") and problem["rows"] == 0
    rows = rows_of(tmp_path / "out" / "train.parquet")
    assert len(rows) == 3 and np.array_equal(mask_of(rows[0]), polygon_mask(good, (480, 640)))


CROSSED = [10, 10, 20, 20, 20, 10, 10, 20]  # its two halves have areas of opposite sign
POLYGONS: dict[str, list[list[float]]] = {
    "crossed": [CROSSED],
    "crossed, with another part": [CROSSED, [100, 100, 150, 100, 150, 150]],
    "an eight that lies": [[30, 30, 60, 50, 60, 30, 30, 50], [200.4, 10.6, 230.2, 30.9, 230.7, 10.1, 200.5, 30.8]],
    "a bow tie beyond the border": [[-20, 100, 40, 160, 40, 100, -20, 160]],
    "a part twice": [[5, 5, 40, 5, 40, 40, 5, 40], [5, 5, 40, 5, 40, 40, 5, 40]],
    "closed by its first corner": [[5, 5, 40, 5, 40, 40, 5, 40, 5, 5]],
}


@pytest.mark.parametrize("name", POLYGONS)
def test_polygons_are_the_masks_that_pycocotools_paints(tmp_path: Path, name: str) -> None:
    assert run(tmp_path, content=_annotation(0, segmentation=POLYGONS[name]), split=["train"]) == 0
    painted = mask_of(rows_of(tmp_path / "out" / "train.parquet")[0])
    assert np.array_equal(painted, polygon_mask(POLYGONS[name], (480, 640)))
    if name == "crossed":
        assert painted.sum() == 50


@pytest.mark.parametrize("case", ["missing", "cut", "text", "other size"])
def test_a_bad_image_costs_its_own_rows_only(tmp_path: Path, case: str) -> None:
    file = write_images(tmp_path / "train2014") / NAMES[ARC]
    content = {"cut": file.read_bytes()[:20_000], "text": b"not an image"}
    if case == "missing":
        file.unlink()
    elif case == "other size":
        Image.open(file).resize((320, 240)).save(file)
    else:
        file.write_bytes(content[case])
    references = [*REFERENCES, reference(8, 203, "train", "another chair")]
    assert run(tmp_path, references, split=["train"]) == 3
    (problem,) = problems_of(tmp_path / "out" / "train.parquet")
    assert (problem["record"], problem["rows"]) == ("image 1", 3)
    assert problem["field"] == ("size" if case == "other size" else "image") and str(file) in problem["problem"]
    assert [row.sentence for row in rows_of(tmp_path / "out" / "train.parquet")] == ["another chair"]


def test_an_earlier_runs_report_does_not_stay(tmp_path: Path) -> None:
    assert run(tmp_path, content=_annotation(0, segmentation=[]), split=["train"]) == 3
    assert run(tmp_path, split=["train"]) == 0
    assert not list((tmp_path / "out").glob("*.jsonl"))


STORED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def exif_image(file: Path, orientation: int) -> None:
    """Store the photograph turned, with the EXIF tag that brings it back."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photographs()[ARC][0]).transpose(STORED[orientation]).save(file, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("drawn_on", ["shown", "stored"])
def test_exif_rotated_images_have_masks_in_the_original_frame(tmp_path: Path, orientation: int, drawn_on: str) -> None:
    exif_image(write_images(tmp_path / "train2014") / NAMES[ARC], orientation)
    mask = photographs()[ARC][1][0]
    content = instances()
    if drawn_on == "stored":
        turned = np.asarray(Image.fromarray(mask).transpose(STORED[orientation]))
        content["images"][0].update(width=480, height=640)
        content["annotations"][0]["segmentation"] = {"size": [640, 480], "counts": _runs(turned)}
    else:
        content["annotations"][0]["segmentation"] = {"size": [480, 640], "counts": _runs(mask)}
    assert run(tmp_path, [reference(1, 101, "train", "box")], content) == 0
    (row,) = rows_of(tmp_path / "out" / "train.parquet")
    assert (row.width, row.height) == (640, 480) and np.array_equal(mask_of(row), mask)


def _runs(mask: np.ndarray) -> list[int]:
    from tests.rows.convert.sources import run_lengths

    return run_lengths(mask)["counts"]


def test_an_orientation_that_the_size_does_not_tell_is_asked_for(tmp_path: Path) -> None:
    exif_image(write_images(tmp_path / "train2014") / NAMES[ARC], 3)
    mask = photographs()[ARC][1][0]
    content = _annotation(0, segmentation={"size": [480, 640], "counts": _runs(mask[::-1, ::-1])})
    references = [reference(1, 101, "train", "box"), reference(8, 203, "train", "another chair")]
    assert run(tmp_path, references, content) == 3
    (problem,) = problems_of(tmp_path / "out" / "train.parquet")
    assert problem["field"] == "orientation" and "--exif applied" in problem["problem"]
    assert run(tmp_path, references, content, exif=Exif.stored) == 0
    assert np.array_equal(mask_of(rows_of(tmp_path / "out" / "train.parquet")[0]), mask)


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "CMYK", "RGBA"])
def test_images_of_every_mode_are_taken(tmp_path: Path, mode: str) -> None:
    file = write_images(tmp_path / "train2014") / NAMES[ARC]
    image = Image.fromarray(photographs()[ARC][0])
    if mode == "I;16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(file, "PNG")
    else:
        image.convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    assert run(tmp_path, split=["train"]) == 0
    assert len(rows_of(tmp_path / "out" / "train.parquet")) == 3
