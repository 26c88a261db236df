"""Measured columns: an optional part of a data file, and bounds by which rows are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from samr1_verl.rows.check import Problem, check_files
from samr1_verl.rows.measured import kept_rows, write_measured
from samr1_verl.rows.record import MEASURED, DataError, count_rows, iter_rows, read_table, record_at, resolve_image
from samr1_verl.rows.show import look
from tests.errors import refused
from tests.row_files import make_record, write_rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    records = [make_record(tmp_path / "data", name=f"{i}.png", sentence=f"{i}") for i in range(4)]
    records[3] = records[3].model_copy(update={"image": str(tmp_path / "data" / "3.png")})
    return write_rows(tmp_path / "data" / "rows.parquet", *records)


VALUES = np.array([0.1, 0.5, 0.9, np.nan])


def test_a_copy_in_another_folder_has_the_columns_and_the_same_images(file, tmp_path):
    target = tmp_path / "out" / "rows.parquet"
    assert write_measured(file, target, {"ceiling": VALUES}) == 4
    before, after = read_table(file), read_table(target)
    assert after["ceiling"].to_pylist() == [0.1, 0.5, 0.9, None]
    same = [name for name in before.column_names if name not in ("image", "ceiling")]
    assert after.select(same).equals(before.select(same)) and after.schema.equals(before.schema)
    assert after["image"].to_pylist() == [*(f"../data/{i}.png" for i in range(3)), str(tmp_path / "data" / "3.png")]
    for row in range(4):
        assert resolve_image(record_at(after, row, target), target).resolve() == file.parent / f"{row}.png"


def test_a_second_measurement_keeps_the_columns_of_the_first(file):
    write_measured(file, file.with_name("one.parquet"), {"ceiling": VALUES}, VALUES > 0.3)
    two = file.with_name("two.parquet")
    assert write_measured(file.with_name("one.parquet"), two, {"success_rate": np.array([1.0, 0.0])}) == 2
    rows = list(iter_rows(two))
    assert [(row["sentence"], row["ceiling"], row["success_rate"]) for row in rows] == [
        ("1", 0.5, 1.0),
        ("2", 0.9, 0.0),
    ]
    assert [row["gradient_chance"] for row in rows] == [None, None]


def test_a_file_without_the_columns_is_a_data_file(file, tmp_path):
    pq.write_table(pq.read_table(file).drop_columns(list(MEASURED)), tmp_path / "data" / "old.parquet")
    old = tmp_path / "data" / "old.parquet"
    assert read_table(old).equals(read_table(file)) and list(iter_rows(old)) == list(iter_rows(file))
    assert write_measured(old, tmp_path / "new.parquet", {"ceiling": VALUES}) == count_rows(file)


def test_a_file_that_keeps_no_row_is_not_written(file, tmp_path):
    with refused(DataError, "no_row_left", target := tmp_path / "none.parquet", "4 rows", file):
        write_measured(file, target, {"ceiling": VALUES}, VALUES > 1)
    assert not target.exists()


def test_bounds_include_their_ends(file, tmp_path):
    write_measured(file, tmp_path / "a.parquet", {"ceiling": np.array([0.1, 0.5, 0.9, 1.0])})
    table = read_table(tmp_path / "a.parquet")
    assert kept_rows(table, {"ceiling": (0.5, 0.9)}, "a").tolist() == [False, True, True, False]
    assert kept_rows(table, {}, "a").all()


def test_bounds_need_a_value_in_every_row_and_leave_one(file, tmp_path):
    write_measured(file, tmp_path / "a.parquet", {"ceiling": VALUES})
    table = read_table(tmp_path / "a.parquet")
    with refused(DataError, "not_measured", "a: column 'ceiling'", "1 of 4", "row 3", "samr1 data ceiling,"):
        kept_rows(table, {"ceiling": (0.5, 1)}, "a")
    with refused(DataError, "not_measured", "a: column 'success_rate'", "4 of 4", "samr1 data difficulty,"):
        kept_rows(table, {"success_rate": (0.1, 0.9)}, "a")
    with refused(DataError, "no_row_left", "a: ", "ceiling in [0.95, 1]", "0.1 to 0.9", "3 rows"):
        kept_rows(table.slice(0, 3), {"ceiling": (0.95, 1)}, "a")


def test_check_finds_a_value_outside_its_range_and_show_prints_the_columns(file, tmp_path):
    write_measured(file, sound := tmp_path / "a.parquet", {"ceiling": VALUES})
    assert [result for result in check_files([sound], 1) if isinstance(result, Problem)] == []
    assert dict(look(sound, 1, 0)[1].lines())["ceiling"].startswith("0.5 (median)")
    assert "ceiling" not in dict(look(file, 1, 0)[1].lines())
    write_measured(file, wrong := tmp_path / "b.parquet", {"ceiling": np.array([0.1, 1.5, 0.9, 1.0])})
    (problem,) = (result for result in check_files([wrong], 1) if isinstance(result, Problem))
    assert "row 1, field 'ceiling'" in problem.text and "1.5" in problem.text
