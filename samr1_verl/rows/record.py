"""The training row: one typed schema, written by the converters, read by training and evaluation.

A parquet file of rows carries the schema version in its metadata. Images are paths, relative to the file's folder
or absolute, never bytes: every field of a row is copied for each rollout.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from samr1_verl import Samr1Error
from samr1_verl.rows.files import complete

SCHEMA_VERSION = 1
_VERSION_KEY = b"samr1_schema_version"
_ROW_GROUP = 1024
MAX_PIXELS = 178_956_970  # of a row's image: Pillow opens no larger one. A mask takes a byte per pixel
MAX_RATIO = 200  # longer to shorter side; the processors of Qwen's models refuse more
Share = Annotated[float, Field(ge=0, le=1)]
Coordinate = Annotated[float, Field(gt=-(1 << 31), lt=1 << 31)]  # pixels; no NaN


class DataError(Samr1Error, ValueError):
    """An invalid data file or row; the message names file, row and field."""


class Record(BaseModel):
    """One sentence about one image, with the masks of the objects that it describes, in the original frame."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_source: str = Field(min_length=1, description="name of the data set; verl groups validation metrics by it")
    sentence: str = Field(min_length=1, description="description of the objects to segment")
    image: str = Field(min_length=1, description="path, relative to the parquet file's folder or absolute")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the image file's bytes")
    height: int = Field(gt=0, description="height of the image after EXIF orientation, in pixels")
    width: int = Field(gt=0, description="width of the image after EXIF orientation, in pixels")
    masks: list[str] = Field(description="compressed COCO RLE counts, one per object; empty: no target, or boxes only")
    ignore: str | None = Field(default=None, description="compressed COCO RLE counts of pixels that do not count")
    boxes: list[list[Coordinate]] = Field(default_factory=list, description="x1 y1 x2 y2, one per object")
    points: list[list[list[Coordinate]]] = Field(default_factory=list, description="x y, any number per object")
    category: str = ""
    source: dict[str, str] = Field(default_factory=dict, description="ids in the source data set")
    # Measured by `samr1 data ceiling` and `samr1 data difficulty`; None: not measured.
    ceiling: Share | None = Field(default=None, description="mask IoU that the segmenter reaches with true prompts")
    success_rate: Share | None = Field(
        default=None, description="share of a policy's answers with a mask IoU above 0.5"
    )
    gradient_chance: Share | None = Field(default=None, description="chance that rewards differ in a group of answers")

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.height * self.width > MAX_PIXELS:
            raise ValueError(f"{self.height}x{self.width} (HxW) are more than {MAX_PIXELS} pixels")
        for name in ("boxes", "points"):
            if getattr(self, name) and self.masks and len(getattr(self, name)) != len(self.masks):
                raise ValueError(f"{name} holds {len(getattr(self, name))} objects, masks {len(self.masks)}")
        if any(len(box) != 4 for box in self.boxes):
            raise ValueError("boxes must hold four numbers each: x1 y1 x2 y2")
        if any(len(point) != 2 for object_points in self.points for point in object_points):
            raise ValueError("points must hold two numbers each: x y")
        return self

    def ground_truth(self) -> str:
        """The JSON string that reward functions receive: size [H, W], masks, ignore, boxes, points."""
        return json.dumps(
            {
                "size": [self.height, self.width],
                "masks": self.masks,
                "ignore": self.ignore,
                "boxes": self.boxes,
                "points": self.points,
            }
        )


MEASURED = ("ceiling", "success_rate", "gradient_chance")  # columns that a file may lack
SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("sentence", pa.string()),
        ("image", pa.string()),
        ("sha256", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("masks", pa.list_(pa.string())),
        ("ignore", pa.string()),
        ("boxes", pa.list_(pa.list_(pa.float64()))),
        ("points", pa.list_(pa.list_(pa.list_(pa.float64())))),
        ("category", pa.string()),
        ("source", pa.string()),  # JSON: parquet maps read back as lists of pairs
        *((name, pa.float64()) for name in MEASURED),
    ],
    metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
)


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write rows to a parquet file and return their number.

    The file appears under its name only when it is complete; memory does not grow with the number of rows.
    """
    count = 0
    with complete(Path(path)) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
        rows: list[dict] = []
        for record in records:
            rows.append({**record.model_dump(), "source": json.dumps(record.source)})
            count += 1
            if len(rows) == _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    return count


def concatenate(path: str | Path, files: Sequence[Path]) -> int:
    """Copy the rows of several files, in order, into one file and return their number; atomic, with bounded memory."""
    count = 0
    with complete(Path(path)) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(_ROW_GROUP):  # a part may have no rows
                writer.write_table(_with_every_column(pa.Table.from_batches([batch])), row_group_size=_ROW_GROUP)
                count += batch.num_rows
    return count


def read_table(path: str | Path) -> pa.Table:
    """Read a parquet file of rows.

    Raises:
        DataError: the file is missing, is no parquet file, has another schema version, lacks a column, has a column of
            another type, or is empty.
    """
    with _checked(Path(path)) as file, _readable(path):
        return _with_every_column(file.read(columns=SCHEMA.names))


def _with_every_column(table: pa.Table) -> pa.Table:
    for name in MEASURED:
        if name not in table.column_names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(table.num_rows, SCHEMA.field(name).type))
    return table.select(SCHEMA.names)


def iter_rows(path: str | Path) -> Iterator[dict]:
    """The rows of a file as plain values for `parse_record`, with one row group in memory. Raises as `read_table`."""
    for table in read_batches(path):
        with _readable(path):  # text may be no UTF-8
            rows = table.to_pylist()
        yield from rows


def read_batches(path: str | Path) -> Iterator[pa.Table]:
    """The rows of a file in tables of at most one row group. Raises as `read_table`."""
    with _checked(Path(path)) as file, _readable(path):
        for batch in file.iter_batches(_ROW_GROUP, columns=SCHEMA.names):
            yield _with_every_column(pa.Table.from_batches([batch]))


def count_rows(path: str | Path) -> int:
    """Number of rows of a file, from its footer. Raises as `read_table`."""
    with _checked(Path(path)) as file:
        return file.metadata.num_rows


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            "unreadable_parquet", f"{path}", f"not a readable parquet file ({error}). Prepare the data again"
        ) from error


def _checked(path: Path) -> pq.ParquetFile:
    """The open file. Raises DataError where this version cannot read its schema."""
    if not path.is_file():
        raise DataError(
            "no_such_file", f"{path}", "no such data file. Make it with samr1 data convert, or correct the path"
        )
    with _readable(path):
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    version = (schema.metadata or {}).get(_VERSION_KEY)
    if version is not None and version != str(SCHEMA_VERSION).encode():
        raise _other_version(path, version.decode(errors="replace")[:80])
    for field in SCHEMA:
        if field.name not in schema.names:
            if field.name in MEASURED:
                continue
            raise DataError(
                "missing_column",
                f"{path}: column {field.name!r}",
                f"it is missing; found {schema.names}, expected {SCHEMA.names}. Prepare the data with samr1 data "
                "convert, or write it with samr1_verl.rows.record.write_records",
            )
        column = schema.field(field.name).type
        if column != field.type and not pa.types.is_null(column):
            raise DataError(
                "wrong_column_type",
                f"{path}: column {field.name!r}",
                f"holds {column}, expected {field.type}. Prepare the data with samr1 data convert, or write it with "
                "samr1_verl.rows.record.write_records",
            )
    if version is None:
        raise _other_version(path, "none")
    if file.metadata.num_rows == 0:
        raise DataError(
            "no_rows", f"{path}", "no rows. Prepare the data again; the converter lists the rows that it left out"
        )
    return file


def _other_version(path: Path, version: str) -> DataError:
    return DataError(
        "other_schema_version",
        f"{path}",
        f"schema version {version}, this samr1_verl reads {SCHEMA_VERSION}. Prepare the data again with the converter "
        "that made it, or install the samr1_verl that wrote it",
    )


def record_at(table: pa.Table, index: int, path: str | Path) -> Record:
    """Row `index` of a table that `read_table(path)` returned. Raises DataError, which names file, row and field."""
    return parse_record(table.slice(index, 1).to_pylist()[0], path, index)


def parse_record(row: dict, path: str | Path, index: int) -> Record:
    """A Record from a row of plain values. Raises DataError, which names file, row and field."""
    try:
        return Record(**{**row, "source": json.loads(row["source"]), "category": row["category"] or ""})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "row"
        raise DataError(
            "bad_field",
            f"{path}: row {index}, field {field!r}",
            f"{first['msg']}; found {str(first['input'])[:200]!r}. Correct the source data and prepare the file again",
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            "source_not_json", f"{path}: row {index}, field 'source'", f"not a JSON object ({error})"
        ) from error


def resolve_image(record: Record, path: str | Path) -> Path:
    """Absolute path of a row's image, where `path` is the parquet file that holds the row."""
    return (Path(path).resolve().parent / record.image).absolute()
