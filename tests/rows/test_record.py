"""Rows: written values are read back, and an unusable file or row ends with an error that says why."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from samr1_verl.rows.record import (
    SCHEMA,
    DataError,
    concatenate,
    count_rows,
    iter_rows,
    parse_record,
    read_table,
    record_at,
    resolve_image,
    write_records,
)
from tests.errors import refused
from tests.row_files import make_record, write_rows


def test_rows_are_read_back_as_written(tmp_path: Path) -> None:
    records = [
        make_record(tmp_path, points=[[[20.5, 15.0], [21.0, 16.0]]], source={"ref": "7"}),
        make_record(tmp_path, name="b.png", masks=[], boxes=[], ignore="0"),
    ]
    assert write_records(tmp_path / "x" / "rows.parquet", records) == 2
    table = read_table(tmp_path / "x" / "rows.parquet")
    assert [record_at(table, i, "rows.parquet") for i in range(2)] == records


def test_files_are_streamed_and_put_together(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / f"{i}.parquet", *[make_record(tmp_path, sentence=f"{i}")] * 3) for i in range(2)]
    write_records(tmp_path / "empty.parquet", [])
    assert concatenate(tmp_path / "all.parquet", [files[0], tmp_path / "empty.parquet", files[1]]) == 6
    assert count_rows(tmp_path / "all.parquet") == 6
    assert [row["sentence"] for row in iter_rows(tmp_path / "all.parquet")] == ["0"] * 3 + ["1"] * 3
    assert list(iter_rows(tmp_path / "all.parquet")) == read_table(tmp_path / "all.parquet").to_pylist()


def test_ground_truth_is_what_rewards_read(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    truth = json.loads(record.ground_truth())
    assert truth == {"size": [48, 64], "masks": record.masks, "ignore": None, "boxes": record.boxes, "points": []}


def test_images_are_relative_to_the_file_or_absolute(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.parquet")
    relative, absolute = make_record(tmp_path), make_record(tmp_path, image=str(tmp_path / "z.png"))
    assert resolve_image(relative, file) == tmp_path / "a.png"
    assert resolve_image(absolute, file) == tmp_path / "z.png"


def test_interrupted_writing_leaves_no_file(tmp_path: Path) -> None:
    def rows():
        yield make_record(tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path / "rows.parquet", rows())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with refused(DataError, "no_such_file", tmp_path / "nowhere.parquet", "samr1 data convert"):
        read_table(tmp_path / "nowhere.parquet")


def test_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("hello")
    with refused(DataError, "unreadable_parquet", tmp_path / "a.parquet"):
        read_table(tmp_path / "a.parquet")


def test_missing_column_is_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.parquet")
    pq.write_table(pq.read_table(file).drop_columns(["sha256"]), file)
    with refused(DataError, "missing_column", f"{file}: column 'sha256'"):
        read_table(file)


def test_column_of_another_type_is_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.parquet")
    table = pq.read_table(file)
    table = table.set_column(table.column_names.index("height"), "height", pa.array(["48"]))
    pq.write_table(table, file)
    with refused(DataError, "wrong_column_type", f"{file}: column 'height'", "string", "int32"):
        read_table(file)


def test_another_schema_version_says_what_to_do(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.parquet")
    pq.write_table(pq.read_table(file).replace_schema_metadata({"samr1_schema_version": "99"}), file)
    table = pq.read_table(file)
    renamed = table.rename_columns({"image": "picture"}).replace_schema_metadata(table.schema.metadata)
    pq.write_table(renamed, tmp_path / "renamed.parquet")
    for other in (file, tmp_path / "renamed.parquet"):
        with refused(DataError, "other_schema_version", other, "version 99", "reads 1"):
            read_table(other)


def test_file_without_rows_is_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "rows.parquet", [])
    with refused(DataError, "no_rows", tmp_path / "rows.parquet"):
        read_table(tmp_path / "rows.parquet")


def test_bad_field_is_named_with_its_row(tmp_path: Path) -> None:
    row = pa.Table.from_pylist([{**make_record(tmp_path).model_dump(), "source": "{}"}], SCHEMA).to_pylist()[0]
    with refused(DataError, "bad_field", "f.parquet: row 3, field 'sha256'", "'abc'"):
        parse_record({**row, "sha256": "abc"}, "f.parquet", 3)
    with refused(DataError, "source_not_json", "f.parquet: row 3, field 'source'"):
        parse_record({**row, "source": "{"}, "f.parquet", 3)


def test_boxes_must_match_the_masks(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"boxes .*2 .*masks 1"):
        make_record(tmp_path, boxes=[[0, 0, 1, 1], [0, 0, 2, 2]])
    with pytest.raises(ValidationError, match="four numbers"):
        make_record(tmp_path, boxes=[[0, 0, 1]])
