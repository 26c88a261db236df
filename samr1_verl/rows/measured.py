"""The measured columns of a data file: written beside its rows, and rows left out by them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from samr1_verl.rows.files import complete
from samr1_verl.rows.record import MEASURED, SCHEMA, DataError, read_batches

ROWS, KEPT = "rows.parquet", "kept.parquet"  # in the folder of a measurement: all rows, and those to keep
Bounds = Mapping[str, tuple[float, float]]  # column: lowest and highest value of a row that stays


def write_measured(
    source: Path, target: Path, columns: Mapping[str, np.ndarray], keep: np.ndarray | None = None
) -> int:
    """Copy a data file with measured columns, and return the number of rows that were written.

    The other columns stay as they are. Paths of images that are relative to the file stay valid: they become relative
    to the copy. The copy appears under its name when it is complete; memory does not grow with the number of rows.

    Args:
        columns: by name, one of MEASURED: [rows] float64 in [0, 1], of the first rows of the file; NaN: not measured.
            Rows beyond them are not written.
        keep: [rows] bool: the rows to write; None: all.

    Raises:
        DataError: the source is no data file, or no row is left.
    """
    if keep is not None and not keep.any():
        raise DataError(
            "no_row_left", f"{target}", f"none of the {len(keep)} rows of {source} would be left, so it is not written"
        )
    count, start, total = 0, 0, min(map(len, columns.values()))
    folder = os.path.relpath(source.resolve().parent, target.resolve().parent)
    with complete(target) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
        for table in read_batches(source):
            table = table.slice(0, total - start)
            rows = slice(start, start + table.num_rows)
            start += table.num_rows
            images = [
                image if folder == "." else os.path.normpath(os.path.join(folder, image))
                for image in table["image"].to_pylist()
            ]
            table = table.set_column(table.schema.get_field_index("image"), "image", pa.array(images, pa.string()))
            for name, values in columns.items():
                own = pa.array(values[rows], pa.float64(), from_pandas=True)  # NaN becomes null
                table = table.set_column(table.schema.get_field_index(name), name, own)
            if keep is not None:
                table = table.filter(pa.array(keep[rows]))
            writer.write_table(table)
            count += table.num_rows
    return count


def check_out(file: Path, folder: Path) -> None:
    """Raises DataError where the results of a measurement would replace the file that is measured."""
    if file.resolve() in ((folder / name).resolve() for name in (ROWS, KEPT)):
        raise DataError(
            "out_in_results", f"{file}", "lies in the folder of the results and would be replaced. Choose another --out"
        )


def store_measured(file: Path, folder: Path, columns: Mapping[str, np.ndarray], keep: np.ndarray | None) -> list[Path]:
    """Write ROWS, the measured rows of a file, and KEPT, those to keep. Returns their paths.

    A KEPT of an earlier start is removed where no row is left out now.

    Args:
        columns: as for `write_measured`. keep: [rows] bool; None: no row is left out.

    Raises:
        DataError: no row is left.
    """
    write_measured(file, folder / ROWS, columns)
    if keep is None:
        (folder / KEPT).unlink(missing_ok=True)
        return [folder / ROWS]
    write_measured(file, folder / KEPT, columns, keep)
    return [folder / ROWS, folder / KEPT]


def kept_rows(table: pa.Table, bounds: Bounds, path: str | Path) -> np.ndarray:
    """[rows] bool: the rows of `read_table(path)` whose measured columns lie within `bounds`, ends included.

    Raises:
        DataError: a row has no value in a column, or no row is left; the message names the command that measures.
    """
    keep = np.ones(table.num_rows, dtype=bool)
    for name, (low, high) in bounds.items():
        values = table[name].to_numpy()
        if (unknown := np.flatnonzero(np.isnan(values))).size:
            raise DataError(
                "not_measured",
                f"{path}: column {name!r}",
                f"has no value in {unknown.size} of {table.num_rows} rows, the first is row {unknown[0]}. Measure it "
                f"with {COMMANDS[name]}, and train on the file that it writes",
            )
        keep &= (values >= low) & (values <= high)
        if not keep.any():
            raise DataError(
                "no_row_left",
                f"{path}",
                f"no row is left with {name} in [{low:g}, {high:g}]; found {values.min():.3g} to "
                f"{values.max():.3g} in {table.num_rows} rows. Set wider bounds",
            )
    return keep


COMMANDS = dict.fromkeys(MEASURED, "samr1 data difficulty") | {"ceiling": "samr1 data ceiling"}
