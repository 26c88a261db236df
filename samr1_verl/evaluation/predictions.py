"""Predictions made elsewhere, in the forms that `samr1 rescore` reads: one mask and one state of the answer per row.

    jsonl   a file of lines {"row": 3, "rle": {"size": [H, W], "counts": …}}; "answer" may follow: objects, nothing,
            unusable
    png     a folder of masks named by row: 3.png
    coco    a file of COCO results: a list of {"image_id": 3, "segmentation": {"size": …, "counts": …}, …}
    eval    a folder that `samr1 eval` wrote, or its predictions.jsonl

A mask without pixels is the answer "no such object", unless a line says otherwise. Rows without a prediction are not
here; `rescore` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from samr1_verl.evaluation.foreign_masks import mask_of_png, runs_of_rle
from samr1_verl.evaluation.journal import PREDICTIONS
from samr1_verl.evaluation.judge import answered
from samr1_verl.evaluation.row_names import RowNames
from samr1_verl.geometry.files import open_regular
from samr1_verl.geometry.giou import Answered
from samr1_verl.geometry.masks import encode_rle, mask_of_runs, union_rle
from samr1_verl.rows.convert.json_files import LONGEST_VALUE, parse_json, read_stream
from samr1_verl.rows.convert.names import short
from samr1_verl.rows.record import DataError
from samr1_verl.scoring.sample import Sample

_LINE_KEYS = {"row", "rle", "answer"}


@dataclass(frozen=True)
class Prediction:
    """The prediction of one row. `mask`: compressed COCO RLE counts of the row's size."""

    mask: str
    answer: Answered
    sample: Sample | None = None  # as `samr1 eval` stored it; None: made elsewhere


def read_predictions(path: Path, rows: RowNames, unite: bool) -> dict[int, Prediction]:
    """The predictions by row, in the order in which they come.

    Args:
        path: a file or a folder in one of the forms above.
        rows: the rows that a prediction may name.
        unite: unite several masks of a row; else they are refused.

    Raises:
        DataError: the form is unknown, or a prediction is damaged, has the wrong size, or names no row. The message
            names the file and the place.
    """
    found: dict[int, Prediction] = {}
    for place, row, item in _items(path, rows):
        size = rows.size(row)
        if isinstance(item, Sample):
            runs, answer = runs_of_rle({"size": list(item.size), "counts": item.mask}, size, place), answered(item)
            prediction = _prediction(runs, answer, size, place, item)
        else:
            prediction = _prediction(*item, size, place)
        found[row] = _united(found[row], prediction, row, size, place, unite) if row in found else prediction
    if not found:
        raise DataError("no_predictions", f"{path}", "no predictions. Name a file or folder with at least one")
    return found


def _prediction(
    runs: np.ndarray, answer: Answered | None, size: tuple[int, int], place: str, sample: Sample | None = None
) -> Prediction:
    mask = mask_of_runs(runs, size)
    says = answer or ("objects" if mask.any() else "nothing")
    if says != "objects" and mask.any():
        raise DataError(
            "mask_contradicts_answer",
            place,
            f"the answer is {says!r}, but its mask has pixels, expected none. Correct one of them",
        )
    return Prediction(encode_rle(mask), says, sample)


def _united(
    before: Prediction, now: Prediction, row: int, size: tuple[int, int], place: str, unite: bool
) -> Prediction:
    """Both predictions of a row as one: one object among them is enough for the answer to be `objects`."""
    if not unite or before.sample is not None or now.sample is not None:
        raise DataError(
            "two_predictions",
            place,
            f"row {row} has another prediction already, expected one. Remove one of them, or unite the masks of each "
            "row with --unite",
        )
    answers = {before.answer, now.answer}
    if "unusable" in answers and len(answers) > 1:
        both = f"{before.answer!r} and {now.answer!r}"
        raise DataError("answers_differ", place, f"row {row} has the answers {both}, expected one. Remove one of them")
    answer: Answered = "objects" if "objects" in answers else now.answer
    return Prediction(encode_rle(union_rle([before.mask, now.mask], size)), answer)


Item = tuple[str, int, "Sample | tuple[np.ndarray, Answered | None]"]  # place, row, prediction


def _items(path: Path, rows: RowNames) -> Iterator[Item]:
    if not path.exists():
        raise DataError("no_such_file", f"{path}", "no such file or folder. Correct the path of the predictions")
    if path.is_dir():
        return _lines(path / PREDICTIONS, rows) if (path / PREDICTIONS).exists() else _pngs(path, rows)
    if path.suffix == ".jsonl":
        return _lines(path, rows)
    if path.suffix == ".json":
        return _coco(path, rows)
    raise DataError(
        "unknown_form",
        f"{path}",
        "unknown form, expected NAME.jsonl (one prediction per line), NAME.json (COCO results), a folder of PNG masks, "
        "or a folder of samr1 eval. Rename the file, or write one of these",
    )


def _lines(path: Path, rows: RowNames) -> Iterator[Item]:
    try:
        with open_regular(path) as file:
            number = 0
            while line := file.readline(LONGEST_VALUE + 1):
                number += 1
                yield _line(line, f"{path}: line {number}", rows)
    except OSError as error:
        raise DataError(
            "unreadable_file", f"{path}", f"cannot be read ({error}). Correct the path of the predictions"
        ) from error


def _line(line: bytes, place: str, rows: RowNames) -> Item:
    try:
        value = parse_json(line.decode("utf-8"))
    except ValueError as error:
        raise DataError(
            "no_json_object", place, f"not a JSON object of UTF-8 text ({short(str(error))}). Write the line again"
        ) from error
    if isinstance(value, dict) and {"index", "response", "mask"} <= value.keys():
        return _stored(value, place, rows)
    if not isinstance(value, dict) or not {"row", "rle"} <= value.keys() <= _LINE_KEYS:
        found = list(value) if isinstance(value, dict) else value
        raise DataError(
            "wrong_keys",
            place,
            f'found {short(found)}, expected an object with the keys "row" and "rle", and "answer" where the mask does '
            "not say it. Write the line in this form",
        )
    answer = value.get("answer")
    if answer is not None and answer not in get_args(Answered):
        raise DataError(
            "unknown_answer", place, f'"answer" is {short(answer)}, expected one of {", ".join(get_args(Answered))}'
        )
    row = rows.find(value["row"], place)
    return place, row, (runs_of_rle(value["rle"], rows.size(row), place), answer)


def _stored(value: dict[str, Any], place: str, rows: RowNames) -> Item:
    """A line of `samr1 eval`. Its row is its index, whatever names rows in other forms."""
    try:
        sample = Sample.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(
            "invalid_sample", f"{place}: {key}", f"{first['msg']}, expected a prediction of samr1 eval"
        ) from error
    if not 0 <= sample.index < len(rows.records):
        raise DataError(
            "no_such_row", place, f"row {sample.index}, expected 0 to {len(rows.records) - 1}. Name the evaluated file"
        )
    record = rows.records[sample.index]
    if (sample.sha256, sample.sentence) != (record.sha256, record.sentence):
        raise DataError(
            "row_differs",
            place,
            f"row {sample.index} is about {short(sample.sentence)} and image {sample.sha256[:12]}…, in the data file "
            f"it is {short(record.sentence)} and {record.sha256[:12]}…. Name the file that was evaluated",
        )
    return place, sample.index, sample


def _pngs(folder: Path, rows: RowNames) -> Iterator[Item]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".png":
            raise DataError(
                "unknown_file", f"{path}", "unknown file, expected PNG masks named by row, as 3.png. Move it elsewhere"
            )
        row = rows.find(path.stem, str(path))
        mask = mask_of_png(path, rows.size(row))
        ends = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False))  # as RLE: column by column, outside first
        yield str(path), row, (np.diff(ends, prepend=0, append=mask.size), None)


def _coco(path: Path, rows: RowNames) -> Iterator[Item]:
    for number, result in enumerate(read_stream(path, "item")):
        place = f"{path}: result {number}"
        if not isinstance(result, dict) or not {"image_id", "segmentation"} <= result.keys():
            found = list(result) if isinstance(result, dict) else result
            raise DataError(
                "wrong_keys",
                place,
                f'found {short(found)}, expected an object with "image_id" and "segmentation". Name a file of COCO '
                "results for segmentation",
            )
        row = rows.find(result["image_id"], place)
        yield place, row, (runs_of_rle(result["segmentation"], rows.size(row), place), None)
