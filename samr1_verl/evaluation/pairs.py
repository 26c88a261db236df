"""Two evaluations of the same rows, paired row by row; everything that would make them different rows is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samr1_verl.evaluation.journal import PREDICTIONS, RESULTS
from samr1_verl.evaluation.judge import judged
from samr1_verl.geometry.giou import COUNTS
from samr1_verl.rows.record import DataError
from samr1_verl.scoring.sample import Sample, read_samples

# Fields of a sample that come from its row, and their names in messages.
ROW_FIELDS = {
    "data_source": "data source",
    "sentence": "sentence",
    "sha256": "image digest",
    "size": "image size (H, W)",
    "truth": "true mask",
    "ignore": "mask of ignored pixels",
}
_SHOWN = 80  # maximum number of characters of a value in a message


def read_pairs(a: Path, b: Path) -> list[tuple[Sample, Sample]]:
    """The judged samples of two evaluations, one pair per row, in the order of the rows.

    Args:
        a, b: folder of a finished evaluation, or a file of predictions.

    Raises:
        DataError: an evaluation cannot be read, or the two do not have the same rows. The message names the first row
            that differs.
        MaskError: a mask without pixel counts does not decode.
    """
    samples_a, samples_b = (_by_row(path) for path in (a, b))
    for has, lacks, rows in ((a, b, samples_a.keys() - samples_b.keys()), (b, a, samples_b.keys() - samples_a.keys())):
        if rows:
            raise DataError(
                "missing_row",
                f"{lacks}",
                f"row {min(rows)} is missing, which {has} has (and {len(rows) - 1} rows more). {_SAME_ROWS}",
            )
    for row, sample in sorted(samples_a.items()):
        for field, name in ROW_FIELDS.items():
            there, here = getattr(sample, field), getattr(samples_b[row], field)
            if there != here:
                raise DataError(
                    "row_differs",
                    f"{b}: row {row}",
                    f"the {name} is {_short(here)}, in {a} it is {_short(there)}. {_SAME_ROWS}",
                )
    return [(sample, samples_b[row]) for row, sample in sorted(samples_a.items())]


_SAME_ROWS = "A comparison needs the same rows: evaluate both policies on one data file, with the same --limit"


def _by_row(path: Path) -> dict[int, Sample]:
    samples: dict[int, Sample] = {}
    for sample in read_samples(_file_of(path)):
        if sample.index in samples:
            raise DataError(
                "two_predictions",
                f"{path}",
                f"row {sample.index} has two predictions, expected one. Evaluate the rows again",
            )
        if sample.truth is None:
            raise DataError(
                "no_true_mask",
                f"{path}",
                f"row {sample.index} has no true mask, expected predictions of samr1 eval or samr1 rescore",
            )
        samples[sample.index] = sample if sample.scores.keys() >= {*COUNTS, "truth"} else judged(sample)
    if not samples:
        raise DataError(
            "no_predictions",
            f"{path}",
            "no predictions, expected one per row. Type the command of this evaluation again",
        )
    return samples


def _file_of(path: Path) -> Path:
    """The file of predictions of an evaluation."""
    if not path.exists():
        raise DataError(
            "no_such_file",
            f"{path}",
            "no such file or folder. Name a folder that samr1 eval or samr1 rescore has written",
        )
    if not path.is_dir():
        return path
    for name in (PREDICTIONS, RESULTS):  # the results are written last
        if not (path / name).is_file():
            raise DataError(
                "unfinished_evaluation",
                f"{path}",
                f"has no {name}, expected the folder of a finished evaluation. Type its samr1 eval command again: it "
                "resumes",
            )
    return path / PREDICTIONS


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
