"""A COCO instances file as a small database on disk. Its JSON is read as a stream, so its size costs no memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from samr1_verl.rows.convert.json_files import read_stream
from samr1_verl.rows.convert.names import Flaw, checked_id, checked_text, short
from samr1_verl.rows.files import complete
from samr1_verl.rows.record import DataError

_TABLES = """
CREATE TABLE images (id PRIMARY KEY, name TEXT, width, height, extra TEXT) WITHOUT ROWID;
CREATE TABLE annotations (id PRIMARY KEY, image_id, category_id, crowd, segmentation TEXT, extra TEXT) WITHOUT ROWID;
CREATE INDEX by_image ON annotations (image_id, category_id);
CREATE TABLE categories (id PRIMARY KEY, name TEXT) WITHOUT ROWID;
"""


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
        "images": lambda image: (
            checked_id(image["id"], "id"),
            image_file_name(image),
            _pixels(image["width"], "width"),
            _pixels(image["height"], "height"),
            extra(image),
        ),
        "annotations": lambda annotation: (
            checked_id(annotation["id"], "id"),
            checked_id(annotation["image_id"], "image_id"),
            checked_id(annotation["category_id"], "category_id"),
            bool(annotation.get("iscrowd", 0)),
            json.dumps(annotation.get("segmentation")),
            extra(annotation),
        ),
        "categories": lambda category: (checked_id(category["id"], "id"), checked_text(category["name"], "name")),
    }

    def fill(database: sqlite3.Connection) -> None:
        database.executescript(_TABLES)
        for table, row in rows.items():
            index = -1
            for index, item in enumerate(read_stream(instances, f"{table}.item")):
                try:
                    values = row(item)
                    database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
                except (KeyError, TypeError, Flaw, sqlite3.Error) as error:
                    raise DataError("bad_entry", f"{instances}: {table}[{index}]", _explain(error)) from error
            if index < 0:
                raise DataError(
                    "no_entries", f"{instances}", f"no {table}. Expected COCO's images, annotations and categories"
                )

    return fill


def _explain(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"field {error.args[0]!r} is missing, expected an entry of a COCO instances file"
    if isinstance(error, Flaw):
        return f"field {error.where!r}: {error.problem}"
    if isinstance(error, sqlite3.IntegrityError):
        return "its id appears twice. If two files were put together, convert them one by one"
    if isinstance(error, sqlite3.OperationalError):
        raise error  # the disk is full
    return f"not an entry of a COCO instances file ({error})"


def _pixels(value: Any, field: str) -> int | float:
    if isinstance(value, int | float) and 0 < value < 1 << 31:
        return value
    raise Flaw("bad_pixel_count", field, f"found {short(value)}, expected a number of pixels")


def image_file_name(image: dict) -> str:
    """The image's name: file_name in COCO's files; LVIS has only coco_url, whose path ends in folder/name.

    Raises:
        Flaw: it is not text.
    """
    if "file_name" in image:
        return checked_text(image["file_name"], "file_name")
    url = checked_text(image["coco_url"], "coco_url")
    try:
        return urlparse(url).path.lstrip("/")
    except ValueError as error:
        raise Flaw("bad_address", "coco_url", f"found {url!r}, expected an address ({error})") from error
