"""`samr1 data check`: true files pass, and each thing that can be wrong is found and named."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.check import Problem, Summary, check_files
from samr1_verl.rows.record import Record
from tests.row_files import make_record, write_rows


def check(*files: Path, status: int, workers: int = 1, limit: int = 10) -> str:
    options = ["--workers", str(workers), "--limit", str(limit)]
    done = CliRunner().invoke(app, ["data", "check", *map(str, files), *options])
    assert done.exit_code == status, done.output
    return done.output


def two_images(folder: Path) -> list[Record]:
    folder.mkdir(parents=True, exist_ok=True)
    return [make_record(folder), make_record(folder, "b.png", (80, 60))]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_true_rows_pass(tmp_path: Path, workers: int) -> None:
    records = [*two_images(tmp_path), make_record(tmp_path, masks=[], boxes=[], sentence="a ghost")]
    output = check(write_rows(tmp_path / "rows.parquet", *records), status=0, workers=workers)
    assert "rows: 3, images: 2" in output and "problems: 0" in output


@pytest.mark.parametrize(("size", "status"), [((2, 401), 1), ((401, 2), 1), ((2, 400), 0), ((600, 3), 0)])
def test_an_image_that_processors_refuse_is_a_problem_of_its_own_kind(
    tmp_path: Path, size: tuple[int, int], status: int
) -> None:
    record = make_record(tmp_path, "long.png", size, masks=[], boxes=[])
    file = write_rows(tmp_path / "rows.parquet", record)
    output = check(file, status=status)
    assert ("200 times" in output) == bool(status)
    kinds = [result.kind for result in check_files([file], 1) if isinstance(result, Problem)]
    assert kinds == ["ratio"] * status


EMPTY = encode_rle(np.zeros((48, 64), bool))
FALSE: dict[str, tuple[dict[str, Any], str, list[str]]] = {  # changes, kind, names
    "missing image": ({"image": "none.png"}, "image", ["row 1: {folder}/none.png: no such"]),
    "wrong digest": ({"sha256": "0" * 64}, "digest", ["row 1: a.png", "SHA-256", "0" * 64]),
    "wrong size": ({"width": 65, "masks": [], "boxes": []}, "size", ["row 1: a.png", "64x48", "65x48"]),
    "broken mask": ({"masks": ["!!"]}, "mask", ["row 1, field 'masks.0': RLE", "'!'"]),
    "mask of another size": ({"masks": [encode_rle(np.ones((4, 4), bool))]}, "mask", ["field 'masks.0'", "16 pixels"]),
    "empty mask": ({"masks": [EMPTY]}, "mask", ["row 1, field 'masks.0'", "empty"]),
    "empty ignore mask": ({"ignore": EMPTY}, "mask", ["row 1, field 'ignore'", "empty"]),
    "box beside its mask": ({"boxes": [[0, 0, 20, 20]]}, "box", ["row 1, field 'masks.0'", "[0.0, 0.0, 20.0, 20.0]"]),
    "box beyond the image": ({"boxes": [[0, 0, 90, 48]]}, "box", ["row 1, field 'boxes.0'", "[0.0, 0.0, 90.0, 48.0]"]),
    "point beyond the image": ({"points": [[[70, 3]]]}, "point", ["row 1, field 'points.0'", "[[70.0, 3.0]]"]),
}


@pytest.mark.parametrize("name", FALSE)
def test_each_untruth_is_named(tmp_path: Path, name: str) -> None:
    changes, kind, names = FALSE[name]
    rows = [make_record(tmp_path), make_record(tmp_path, sentence="another", **changes)]
    file = write_rows(tmp_path / "rows.parquet", *rows)
    output = check(file, status=1)
    assert all(part.format(folder=tmp_path) in output for part in names), output
    assert "problems: 1" in output and [
        found.kind for found in check_files([file], 1) if isinstance(found, Problem)
    ] == [kind]


def test_an_image_changed_later_is_found(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.parquet", *two_images(tmp_path))
    Image.new("RGB", (80, 60)).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    output = check(file, status=1)
    assert "row 1: b.png" in output and f"row 0: {tmp_path / 'a.png'}: unreadable" in output and "SHA-256" in output


def test_rows_that_break_the_schema_are_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.parquet", *two_images(tmp_path))
    table = pq.read_table(file)
    index = table.column_names.index("sha256")
    digests = [*table.column("sha256").to_pylist()[:1], "abc"]
    pq.write_table(table.set_column(index, table.schema.field("sha256"), [digests]), file)
    assert "row 1, field 'sha256'" in check(file, status=1)


def test_duplicates_are_problems_and_repeats_are_counted(tmp_path: Path) -> None:
    row, other = two_images(tmp_path)
    file = write_rows(tmp_path / "rows.parquet", row, other, row, make_record(tmp_path, source={"sent_id": "2"}))
    output = check(file, status=1)
    assert "row 2 is row 0" in output and "problems: 1" in output
    assert "other ids: 1" in output


def test_images_in_two_files_are_leaks(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.parquet", *two_images(tmp_path))
    (tmp_path / "test").mkdir()
    copy = tmp_path / "test" / "renamed.png"
    copy.write_bytes((tmp_path / "b.png").read_bytes())
    leaked = make_record(tmp_path, "b.png", (80, 60)).model_copy(update={"image": str(copy), "sha256": sha256_of(copy)})
    test = write_rows(tmp_path / "test.parquet", make_record(tmp_path, "c.png", (50, 40)), leaked)
    output = check(train, test, status=1)
    assert all(name in output for name in (f"{test}: ", f"{train}: 1", "row 1", "problems: 1")), output


def test_many_problems_are_summed_up(tmp_path: Path) -> None:
    rows = [make_record(tmp_path, sentence=str(i), masks=[EMPTY]) for i in range(5)]
    file = write_rows(tmp_path / "rows.parquet", *rows)
    output = check(file, status=1, limit=2)
    assert output.count("it is empty") == 2 and "3 more" in output and "'mask'" in output
    assert check(file, status=1, limit=0).count("it is empty") == 5


def test_files_that_are_no_data_end_with_an_error(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none.parquet'}: no such" in check(tmp_path / "none.parquet", status=1)


def test_drawn_scenes_are_true_and_splits_share_none(drawn: Path) -> None:
    results = list(check_files([drawn / f"{split}.parquet" for split in ("train", "val", "test")], workers=1))
    kinds = {result.kind for result in results if isinstance(result, Problem)}
    assert kinds <= {"duplicate"}, "a scene may be asked about twice in the same words"
    assert [result.rows for result in results if isinstance(result, Summary)] == [32, 4, 8]
