"""A COCO instances file as a small database on disk. Its JSON is read as a stream, so its size costs no memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from samr1_verl.rows.files import complete
from samr1_verl.rows.record import DataError

_TABLES = """
CREATE TABLE images (id PRIMARY KEY, name TEXT, width, height, extra TEXT) WITHOUT ROWID;
CREATE TABLE annotations (id PRIMARY KEY, image_id, category_id, crowd, segmentation TEXT, extra TEXT) WITHOUT ROWID;
CREATE INDEX by_image ON annotations (image_id, category_id);
CREATE TABLE categories (id PRIMARY KEY, name TEXT) WITHOUT ROWID;
"""


def read_stream(path: Path, prefix: str) -> Iterator[Any]:
    """The items of a JSON array, one at a time. `prefix` is the array's name in ijson's notation.

    Raises:
        DataError: the file is missing or not JSON.
        ModuleNotFoundError: the package ijson (extra `data`) is not installed.
    """
    import ijson  # only here: it belongs to the extra `data`

    try:
        with path.open("rb") as file:
            yield from ijson.items(file, prefix, use_float=True)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Unpack the data set there, or correct the option") from error
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}). Download it again") from error


Fill = Callable[[sqlite3.Connection], None]


def open_index(path: Path, *fills: Fill) -> sqlite3.Connection:
    """The database at `path`. Where there is none, each of `fills` is called with a new, empty one."""
    if not path.is_file():
        with complete(path) as partial, closing(sqlite3.connect(partial)) as database:
            database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
            for fill in fills:
                fill(database)
            database.commit()
    return sqlite3.connect(path)


def instances_of(instances: Path, keep: Sequence[str] = ()) -> Fill:
    """A function that fills a database with the tables images, annotations and categories of a COCO instances file.

    It raises DataError where the file is missing or not a COCO instances file.

    Args:
        keep: further fields of images and annotations to keep, as JSON in the column `extra`.
    """

    def extra(item: dict) -> str:
        return json.dumps({name: item[name] for name in keep if name in item})

    rows: dict[str, Callable[[dict], tuple]] = {
        "images": lambda image: (image["id"], _file_name(image), image["width"], image["height"], extra(image)),
        "annotations": lambda annotation: (
            annotation["id"],
            annotation["image_id"],
            annotation["category_id"],
            bool(annotation.get("iscrowd", 0)),
            json.dumps(annotation.get("segmentation")),
            extra(annotation),
        ),
        "categories": lambda category: (category["id"], category["name"]),
    }

    def fill(database: sqlite3.Connection) -> None:
        database.executescript(_TABLES)
        for table, row in rows.items():
            index = -1
            for index, item in enumerate(read_stream(instances, f"{table}.item")):
                try:
                    values = row(item)
                    database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
                except (KeyError, TypeError, sqlite3.Error) as error:
                    raise DataError(f"{instances}: {table}[{index}]: {_explain(error)}") from error
            if index < 0:
                raise DataError(f"{instances}: no {table}. Expected COCO's images, annotations and categories")

    return fill


def _explain(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"field {error.args[0]!r} is missing, expected an entry of a COCO instances file"
    if isinstance(error, sqlite3.IntegrityError):
        return "its id appears twice. If two files were put together, convert them one by one"
    if isinstance(error, sqlite3.OperationalError):
        raise error  # the disk is full
    return f"not an entry of a COCO instances file ({error})"


def _file_name(image: dict) -> str:
    """The image's name: file_name in COCO's files; LVIS has only coco_url, whose path ends in folder/name."""
    return image["file_name"] if "file_name" in image else urlparse(image["coco_url"]).path.lstrip("/")


def find_image(folder: Path, name: str) -> Path:
    """The image `name` below `folder`: under its whole name, or without leading folders that do not exist."""
    parts = Path(name).parts
    candidates = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    return next((path for path in candidates if path.is_file()), candidates[-1])
