"""Predictions made elsewhere as judged samples, so that they get the figures of `samr1 eval`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samr1_verl.answers import Reason
from samr1_verl.evaluation.journal import CHECKSUMS
from samr1_verl.evaluation.judge import judged
from samr1_verl.evaluation.predictions import Prediction
from samr1_verl.evaluation.row_names import RowNames
from samr1_verl.geometry.masks import MaskError, encode_rle
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.rows.record import DataError, Record
from samr1_verl.scoring.sample import Sample

MISSING, UNUSABLE = "missing", "unusable"  # reasons of rows without a prediction, and of predictions that say so
_REASONS = {"objects": None, "nothing": Reason.NO_TARGET.value, "unusable": UNUSABLE}


def check_out(folder: Path) -> None:
    """Check that the results overwrite no evaluation of a policy. Raises DataError."""
    if (folder / CHECKSUMS).exists():
        raise DataError(
            "folder_of_eval",
            f"{folder}",
            "is the folder of a samr1 eval, whose predictions cost more. Choose another --out",
        )


def rescored(rows: RowNames, file: Path, predictions: Mapping[int, Prediction]) -> list[Sample]:
    """A judged sample for every row. A row without a prediction is an unusable answer with the reason `missing`.

    Masks are compared with the rows' true masks, also where `samr1 eval` stored other ones.

    Args:
        file: file of the rows, for messages.

    Raises:
        DataError: a row's true mask does not decode.
    """
    return [_sample(record, row, predictions.get(row), file) for row, record in enumerate(rows.records)]


def drop_text_figures(results: dict[str, Any]) -> None:
    """Remove the figures that need the text of the answers from results.json's content, in place."""
    groups = (group for grouping in results["tables"].values() for group in grouping.values())
    for figures in (results, *groups):
        del figures["think_rate"]


def _sample(record: Record, row: int, prediction: Prediction | None, file: Path) -> Sample:
    size = (record.height, record.width)
    try:
        true_mask, _ = GroundTruth.model_validate_json(record.ground_truth()).union_and_ignore()
    except MaskError as error:
        raise DataError.within(f"{file}: row {row}", error) from error
    stored = None if prediction is None else prediction.sample
    return judged(
        Sample(
            index=row,
            data_source=record.data_source,
            category=record.category,
            sentence=record.sentence,
            image=record.image,
            sha256=record.sha256,
            size=size,
            response="" if stored is None else stored.response,
            reason=MISSING if prediction is None else stored.reason if stored else _REASONS[prediction.answer],
            shapes=() if stored is None else stored.shapes,
            mask=encode_rle(np.zeros(size, dtype=bool)) if prediction is None else prediction.mask,
            truth=encode_rle(true_mask),
            ignore=record.ignore,
            scores={},
        )
    )
