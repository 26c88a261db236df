"""JSON of a data set, read with bounded memory.

A JSON reader's memory grows with the nesting: 200,000 open brackets, 200 kB, took ijson 19 GB, because it keeps the
path of each level. So nesting and the length of a value are checked before a reader sees the bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from samr1_verl.geometry.files import open_regular
from samr1_verl.rows.record import DataError

NESTING = 32  # levels of lists and objects; COCO's annotations have six
LONGEST_VALUE = 1 << 24  # bytes; a mask of a photograph takes some ten thousand
_BLOCK = 1 << 16  # bytes read together
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_STEP = np.zeros(256, dtype=np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1
_MARK = np.zeros(256, dtype=bool)
_MARK[list(b"[]{},:")] = True


class JsonText:
    """A JSON file that is checked while it is read.

    Args:
        file: open for reading.
        path: its name, for messages.
        level: number of lists and objects around the values whose length is bounded.
    """

    def __init__(self, file: BinaryIO, path: Path, level: int):
        self._file, self._path, self._level = file, path, level
        self._depth = self._pending = 0  # levels that are open, and bytes since the last mark at `level` or above
        self._in_string = self._escaped = False

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as a file's `read`. Raises DataError: too much nesting, or too long a value."""
        block = self._file.read(size)
        if block:
            self._check(block)
        return block

    def _check(self, block: bytes) -> None:
        if self._escaped:
            block = b"x" + block[1:]
        if b"\\" in block:
            block = _ESCAPE.sub(b"xx", block)
        self._escaped = block.endswith(b"\\")
        codes = np.frombuffer(block, dtype=np.uint8)
        in_string = np.logical_xor.accumulate(codes == ord('"')) ^ self._in_string
        depth = self._depth + np.cumsum(np.where(in_string, 0, _STEP[codes]), dtype=np.int64)
        if depth.max() > NESTING:
            raise DataError(
                "nested_too_deeply",
                f"{self._path}",
                f"lists and objects inside one another to more than {NESTING} levels. It is damaged, or not the file "
                "that the option expects: download it again",
            )
        marks = np.flatnonzero(_MARK[codes] & ~in_string & (depth <= self._level))
        ends = np.concatenate([[-self._pending], marks, [len(block)]])
        if np.diff(ends).max() > LONGEST_VALUE:
            raise DataError(
                "value_too_long",
                f"{self._path}",
                f"a value of more than {LONGEST_VALUE} bytes. It is damaged, or not the file that the option expects: "
                "download it again",
            )
        self._pending = len(block) - int(ends[-2])
        self._depth, self._in_string = int(depth[-1]), bool(in_string[-1])


def read_stream(path: Path, prefix: str) -> Iterator[Any]:
    """The items of a JSON array, one at a time. `prefix` is the array's name in ijson's notation.

    Raises:
        DataError: the file is missing, not JSON, or exceeds a limit.
        ModuleNotFoundError: the package ijson (extra `data`) is not installed.
    """
    import ijson  # only here: it belongs to the extra `data`

    count = 0
    try:
        with open_regular(path) as file:
            for item in ijson.items(JsonText(file, path, prefix.count(".") + 1), prefix, use_float=True):
                yield item
                count += 1
    except FileNotFoundError as error:
        raise DataError(
            "no_such_file", f"{path}", "no such file. Unpack the data set there, or correct the option"
        ) from error
    except DataError:
        raise
    except (ijson.JSONError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())  # ijson shows the place in three lines
        raise DataError(
            "broken_json", f"{path}", f"not readable as JSON after {count} of {prefix} ({reason}). Download it again"
        ) from error


def check_json_file(path: Path) -> None:
    """Read a JSON file, or one with a value per line, to its end. Raises DataError where it exceeds a limit."""
    with open_regular(path) as file:
        text = JsonText(file, path, 2)
        while text.read(_BLOCK):
            pass


def parse_json(text: str) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: it is not JSON, or exceeds a limit.
    """
    if len(text) > LONGEST_VALUE:
        raise ValueError(f"{len(text)} characters, the limit is {LONGEST_VALUE}")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("too many lists and objects inside one another") from error
