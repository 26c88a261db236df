"""The predictions of a running evaluation on disk, in whole blocks; a partial block of a killed run is truncated.

A block holds the rows that the policy answers together. An interrupted run therefore asks about the same batches as an
uninterrupted run, with the same padding and seeds, and has the same figures.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from samr1_verl.rows.files import complete
from samr1_verl.rows.record import DataError
from samr1_verl.scoring.sample import Sample

PREDICTIONS, SETTINGS, RESULTS = "predictions.jsonl", "settings.json", "results.json"
INFORMATIVE = ("file",)  # settings that may differ between two starts: file_sha256 decides, not the file's path


class Journal:
    """Predictions of `rows` rows in blocks of `block` consecutive rows. `open_journal` makes it."""

    def __init__(self, file: BinaryIO, path: Path, rows: int, block: int) -> None:
        self._file, self._path, self._rows, self._block = file, path, rows, block
        self.samples: dict[int, Sample] = {}
        self._recover()

    def missing(self) -> Iterator[range]:
        """The blocks without predictions, in order, as ranges of row numbers."""
        for start in range(0, self._rows, self._block):
            if start not in self.samples:
                yield range(start, min(start + self._block, self._rows))

    def append(self, samples: Sequence[Sample]) -> None:
        """Append one whole block to the file, and wait until it is on disk."""
        self._file.write("".join(f"{sample.model_dump_json()}\n" for sample in samples).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.samples.update((sample.index, sample) for sample in samples)

    def ordered(self) -> list[Sample]:
        """All samples in the order of the rows."""
        return [self.samples[index] for index in sorted(self.samples)]

    def _recover(self) -> None:
        """Read the file and truncate it after the last whole block.

        Raises:
            DataError: the file has a fault that an interrupted run cannot cause.
        """
        whole = position = 0
        pending: list[Sample] = []
        lines = self._file.readlines()
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            position += len(line)
            try:
                sample = Sample.model_validate_json(line)
            except ValidationError as error:
                raise DataError(
                    f"{self._path}: line {number}: {error.errors()[0]['msg']}, expected a sample as JSON. Correct or "
                    "remove the line's block, or start again with --restart"
                ) from error
            expected = self._expected(pending)
            if sample.index not in expected or sample.index in self.samples:
                raise DataError(
                    f"{self._path}: line {number}: holds row {sample.index}, which does not belong there. Start again "
                    "with --restart"
                )
            pending.append(sample)
            if len(pending) == len(self._rows_of(pending[0].index)):
                self.samples.update((finished.index, finished) for finished in pending)
                pending, whole = [], position
        self._file.truncate(whole)
        self._file.seek(whole)

    def _expected(self, pending: Sequence[Sample]) -> range:
        """Rows that the next line may hold: the next row of the pending block, or else the first row of any block."""
        if pending:
            return range(pending[-1].index + 1, pending[-1].index + 2)
        return range(0, self._rows, self._block)

    def _rows_of(self, index: int) -> range:
        start = index - index % self._block
        return range(start, min(start + self._block, self._rows))


@contextmanager
def open_journal(folder: Path, settings: Mapping[str, Any], rows: int, block: int, restart: bool) -> Iterator[Journal]:
    """The journal in an evaluation's folder. The folder is made where it is missing.

    Args:
        settings: everything that an answer or its mask depends on, in JSON values.
        rows: number of rows of the evaluation.
        block: number of rows that the policy answers together.
        restart: discard the predictions in the folder.

    Raises:
        DataError: the folder has predictions with other settings, another process writes to it, or its predictions
            were edited.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PREDICTIONS
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{path}: another process writes to it. Wait for it, or choose another --out") from error
        if restart:
            file.truncate(0)
            (folder / SETTINGS).unlink(missing_ok=True)
        file.seek(0)
        _check_settings(folder, settings, empty=path.stat().st_size == 0)
        yield Journal(file, path, rows, block)


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
            f"{path}: cannot be read ({error}), but the folder has predictions. Choose another --out"
        ) from error
    now = _flat(settings)
    differences = [
        f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in INFORMATIVE
    ]
    if differences:
        raise DataError(
            "\n".join(
                [
                    f"{folder}: its predictions were made with other settings, and one evaluation cannot mix them:",
                    *differences,
                    "Choose another --out, or start again with --restart",
                ]
            )
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
