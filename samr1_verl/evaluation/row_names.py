"""The rows of a data file by the names that predictions made elsewhere use for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samr1_verl.rows.convert.names import short
from samr1_verl.rows.record import DataError, Record

_DIGITS = 18  # maximum number of digits of a row's number


class RowNames:
    """Finds rows by their names.

    Args:
        records: the rows.
        file: their file, for messages.
        key: key of the rows' `source` whose value is the name, such as `sent_id`; None: the name is the row's number,
            counted from 0.

    Raises:
        DataError: a row lacks the key, or two rows share a value.
    """

    def __init__(self, records: Sequence[Record], file: Path, key: str | None = None) -> None:
        self.records, self._file, self._key = records, file, key
        self._rows: dict[str, int] = {}
        for row, record in enumerate(records):
            if key is not None and key not in record.source:
                raise DataError(
                    "no_such_key",
                    f"{file}: row {row}",
                    f"its source has no {key!r}, it has {', '.join(record.source) or 'nothing'}. Choose another --key, "
                    "or leave it out to name rows by their number",
                )
            name = str(row) if key is None else record.source[key]
            if (other := self._rows.setdefault(name, row)) != row:
                raise DataError(
                    "shared_row_name",
                    f"{file}",
                    f"rows {other} and {row} have the same {key}, {short(name)}, so it names no single row. Choose "
                    "another --key, or leave it out to name rows by their number",
                )

    def find(self, name: Any, place: str) -> int:
        """The number of the row with a name, text or a whole number.

        Args:
            place: file and position of the name, for messages.

        Raises:
            DataError: it is no name, or no row has it.
        """
        text = str(name) if isinstance(name, int) and not isinstance(name, bool) and abs(name) < 1 << 63 else name
        if not isinstance(text, str):
            raise DataError("bad_row_name", place, f"a row is named by {short(name)}, expected {self._expected()}")
        if self._key is None and text.isascii() and text.isdecimal() and len(text) <= _DIGITS:
            text = str(int(text))  # 000012 is 12
        if text not in self._rows:
            raise DataError(
                "no_such_row",
                place,
                f"{self._file} has no row {short(name)}, expected {self._expected()}. Correct the name, or choose what "
                "names a row with --key",
            )
        return self._rows[text]

    def size(self, row: int) -> tuple[int, int]:
        """(H, W) of a row's image."""
        return self.records[row].height, self.records[row].width

    def _expected(self) -> str:
        if self._key is None:
            return f"the number of a row, 0 to {len(self.records) - 1}"
        return f"the {self._key} of a row"
