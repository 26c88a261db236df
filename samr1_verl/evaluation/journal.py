"""The predictions of a running evaluation on disk, in whole blocks; an unfinished or damaged block is dropped.

A block holds the rows that the policy answers together. An interrupted run therefore asks about the same batches as an
uninterrupted run, with the same padding and seeds, and has the same figures.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy as np
from typing_extensions import Self

from samr1_verl.rows.files import complete
from samr1_verl.rows.record import DataError

PREDICTIONS, SETTINGS, RESULTS = "predictions.jsonl", "settings.json", "results.json"
CHECKSUMS = "checksums.txt"
ANSWERS = "answers"  # folder of the single answers of an evaluation with votes


class Entry(Protocol):
    """What a journal stores for a row: a pydantic model with the row's number."""

    @property
    def index(self) -> int: ...

    def model_dump_json(self) -> str: ...

    @classmethod
    def model_validate_json(cls, json_data: bytes) -> Self: ...


Stored = TypeVar("Stored", bound=Entry)
_log = logging.getLogger(__name__)
INFORMATIVE = ("file",)  # settings that may differ between two starts: file_sha256 decides, not the file's path


class Journal(Generic[Stored]):
    """Predictions of `rows` rows in blocks of `block` consecutive rows. `open_journal` makes it.

    A second file has a line for every block: the block's first row, its place in the predictions' file and its length,
    both in bytes, and its CRC-32, all in hexadecimal. The rows of a block that a killed run left unfinished, or that is
    damaged, are asked again.
    """

    def __init__(
        self, file: BinaryIO, checksums: BinaryIO, path: Path, rows: int, block: int, kind: type[Stored]
    ) -> None:
        self._file, self._checksums, self._path, self._rows, self._block = file, checksums, path, rows, block
        self._kind = kind
        self.samples: dict[int, Stored] = {}
        self._recover()

    def missing(self) -> Iterator[range]:
        """The blocks without predictions, in order, as ranges of row numbers."""
        for start in range(0, self._rows, self._block):
            if start not in self.samples:
                yield self._rows_of(start)

    def append(self, samples: Sequence[Stored]) -> None:
        """Append one whole block to the file, and wait until it is on disk."""
        place, block = self._file.tell(), _lines(samples)
        _to_disk(self._file, block)
        _to_disk(self._checksums, _entry(samples, place))  # last: it never stands for a block that is not on disk
        self.samples.update((sample.index, sample) for sample in samples)

    def finish(self) -> list[Stored]:
        """All samples in the order of the rows, in which the file then has them as well."""
        blocks = [[self.samples[row] for row in self._rows_of(start)] for start in range(0, self._rows, self._block)]
        ordered = b"".join(map(_lines, blocks))
        self._file.seek(0)
        if self._file.read() != ordered:
            place = 0
            for block in blocks:  # first: so the entries fit the file before and after it is replaced
                _to_disk(self._checksums, _entry(block, place))
                place += len(_lines(block))
            with complete(self._path) as part:
                part.write_bytes(ordered)
        return [sample for block in blocks for sample in block]

    def _recover(self) -> None:
        """Read the sound blocks, and truncate the file after the last of them."""
        content = self._file.read()
        damaged, end = np.ones(len(content), dtype=bool), 0
        for entry in self._checksums.read().splitlines():
            if (found := self._read(entry, content)) is not None:
                place, length, samples = found
                self.samples.update((sample.index, sample) for sample in samples)
                damaged[place : place + length], end = False, max(end, place + length)
        if damaged[:end].any():
            first, last = np.flatnonzero(damaged[:end])[[0, -1]]
            lines = [content.count(b"\n", 0, int(byte)) + 1 for byte in (first, last)]
            _log.warning(
                "%s: lines %d to %d do not match %s: the file was damaged or edited. Their rows are asked again",
                *(self._path, *lines, CHECKSUMS),
            )
        self._file.truncate(end)
        self._file.seek(end)

    def _read(self, entry: bytes, content: bytes) -> tuple[int, int, list[Stored]] | None:
        """Place, length and samples of an entry's block; None: the entry or its block is damaged or gone."""
        try:
            start, place, length, checksum = (int(number, 16) for number in entry.split(b" "))
            block = content[place : place + length]
            if zlib.crc32(block) != checksum:
                return None
            samples = [self._kind.model_validate_json(line) for line in block.splitlines()]
        except ValueError:  # pydantic's as well
            return None
        sound = [sample.index for sample in samples] == list(self._rows_of(start))
        return (place, length, samples) if sound else None

    def _rows_of(self, start: int) -> range:
        """The rows of the block that begins with a row; empty: no block does."""
        return range(start, min(start + self._block, self._rows) if start % self._block == 0 else start)


def _lines(samples: Sequence[Entry]) -> bytes:
    return "".join(f"{sample.model_dump_json()}\n" for sample in samples).encode()


def _entry(samples: Sequence[Entry], place: int) -> bytes:
    block = _lines(samples)
    return (
        " ".join(f"{number:x}" for number in (samples[0].index, place, len(block), zlib.crc32(block))).encode() + b"\n"
    )


def _to_disk(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def open_journal(
    folder: Path,
    settings: Mapping[str, Any],
    rows: int,
    block: int,
    restart: bool,
    kind: type[Stored],
) -> Iterator[Journal[Stored]]:
    """The journal in an evaluation's folder. The folder is made where it is missing.

    Args:
        settings: everything that an answer or its mask depends on, in JSON values.
        rows: number of rows of the evaluation.
        block: number of rows that the policy answers together.
        restart: discard the predictions in the folder.
        kind: class of a stored prediction.

    Raises:
        DataError: the folder has predictions with other settings or without checksums, or another process writes to it.
    """
    if (folder / ANSWERS).exists():
        raise DataError("made_with_votes", f"{folder}", "holds an evaluation with --votes. Choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PREDICTIONS
    if path.exists() and path.stat().st_size and not restart and not (folder / CHECKSUMS).exists():
        raise DataError(
            "missing_checksums",
            f"{folder / CHECKSUMS}",
            f"missing, so damage of {PREDICTIONS} could not be seen. Evaluations of version 0.1 have none. Put the "
            "file back, choose another --out, or start again with --restart",
        )
    with open(folder / CHECKSUMS, "a+b") as checksums, open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                "folder_in_use", f"{path}", "another process writes to it. Wait for it, or choose another --out"
            ) from error
        if restart:
            file.truncate(0)
            checksums.truncate(0)
            (folder / SETTINGS).unlink(missing_ok=True)
        file.seek(0)
        checksums.seek(0)
        _check_settings(folder, settings, empty=path.stat().st_size == 0)
        yield Journal(file, checksums, path, rows, block, kind)


def _check_settings(folder: Path, settings: Mapping[str, Any], empty: bool) -> None:
    path = folder / SETTINGS
    if empty:
        with complete(path) as part:
            part.write_text(f"{json.dumps(settings, indent=2)}\n")
        return
    try:
        before = _flat(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise DataError(
            "unreadable_settings",
            f"{path}",
            f"cannot be read ({error}), but the folder has predictions. Choose another --out",
        ) from error
    now = _flat(settings)
    differences = [
        f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in INFORMATIVE
    ]
    if differences:
        listed = "\n".join(differences)
        raise DataError(
            "other_settings",
            f"{folder}",
            "its predictions were made with other settings, and one evaluation cannot mix them:\n"
            f"{listed}\nChoose another --out, or start again with --restart",
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; values as they are after a round trip through JSON."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.loads(json.dumps(value))
    return flat
