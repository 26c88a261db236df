"""The published evaluators, written again from their description: one loop over the rows for each publisher.

Nothing here imports the package. A row is a predicted mask, a label map as LISA's (0 background, 1 object, 255 ignored)
and the state of its answer. `EVALUATORS` has one function per protocol; each returns the figures by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Row:
    predicted: np.ndarray  # HxW bool
    labels: np.ndarray  # HxW int: 0, 1, 255
    answer: str = "objects"  # "nothing": the answer says so; "unusable": it cannot be read


@dataclass
class Tally:
    """What the evaluators add up."""

    intersection: float = 0
    union: float = 0
    left_out: int = 0
    ious: list[float] | None = None
    no_target: list[bool] | None = None  # told right, per row without a target
    target: list[bool] | None = None  # told right, per row with a target
    target_ious: list[float] | None = None

    def __post_init__(self) -> None:
        self.ious, self.no_target, self.target, self.target_ious = [], [], [], []

    def add(
        self, intersection: float, union: float, iou: float, has_target: bool, says_nothing: bool, bad: bool
    ) -> None:
        self.intersection += intersection
        self.union += union
        self.ious.append(iou)
        if has_target:
            self.target.append(not says_nothing and not bad)
            self.target_ious.append(iou)
        else:
            self.no_target.append(says_nothing)

    def figures(self, tiny: float = 0.0) -> dict[str, float]:
        result = {"left_out": float(self.left_out)}
        if self.ious:
            result["giou"] = float(np.mean(self.ious))
            result["ciou"] = self.intersection / (self.union + tiny) if self.union + tiny > 0 else 0.0
        if self.no_target:
            result["n_acc"] = float(np.mean(self.no_target))
        if self.target:
            result["t_acc"] = float(np.mean(self.target))
            for tenth in (5, 6, 7, 8, 9):
                result[f"pr@0.{tenth}"] = float(np.mean([iou >= tenth / 10 for iou in self.target_ious]))
        return result


def lisa(rows: list[Row]) -> dict[str, float]:
    """train_ds.py, validate: histograms without the pixels of label 255, I / (U + 1e-5), plus 1 where U is 0.

    The one departure: an unusable answer gets no such 1.
    """
    tally = Tally()
    for row in rows:
        output, target = row.predicted.astype(int).ravel(), row.labels.ravel()
        output, target = output[target != 255], target[target != 255]
        same = output[output == target]
        i = int((same == 1).sum())
        u = int((output == 1).sum()) + int((target == 1).sum()) - i
        iou = i / (u + 1e-5)
        bad = row.answer == "unusable"
        if u == 0 and not bad:
            iou += 1.0
        tally.add(i, u, iou, bool((target == 1).any()), not bad and not (output == 1).any(), bad)
    return tally.figures(tiny=1e-10)


def converted(labels: np.ndarray) -> np.ndarray:
    """Seg-Zero's data: the label map cast to bool, so that 255 is the object."""
    return labels.astype(bool)


def segzero(rows: list[Row]) -> dict[str, float]:
    """calculate_iou.py over all rows: I / U if U > 0 else 0."""
    tally = Tally()
    for row in rows:
        truth, bad = converted(row.labels), row.answer == "unusable"
        i, u = np.logical_and(row.predicted, truth).sum(), np.logical_or(row.predicted, truth).sum()
        tally.add(i, u, i / u if u > 0 else 0.0, bool(truth.any()), not bad and not row.predicted.any(), bad)
    return tally.figures()


def segzero_scripts(rows: list[Row]) -> dict[str, float]:
    """evaluation.py: an unreadable answer is kept with I = 0 and U = the truth; a readable one with U = 0 is not."""
    tally = Tally()
    for row in rows:
        truth = converted(row.labels)
        if row.answer == "unusable":
            u = truth.sum()
            tally.add(0, u, 0.0, bool(truth.any()), False, True)
            continue
        i, u = np.logical_and(row.predicted, truth).sum(), np.logical_or(row.predicted, truth).sum()
        if u == 0:
            tally.left_out += 1
            continue
        tally.add(i, u, i / u, bool(truth.any()), not row.predicted.any(), False)
    return tally.figures()


def vision_reasoner_no_object(rows: list[Row]) -> dict[str, float]:
    """calculate_iou_with_bbox_nonobj.py: 1 where the truth is empty and the answer lists no box, else I / U or 0."""
    tally = Tally()
    for row in rows:
        truth, said = converted(row.labels), row.answer == "nothing"
        i, u = np.logical_and(row.predicted, truth).sum(), np.logical_or(row.predicted, truth).sum()
        iou = i / u if u > 0 else 0.0
        non_object = truth.sum() == 0 and said
        tally.add(i, u, 1.0 if non_object else iou, bool(truth.any()), said, row.answer == "unusable")
    return tally.figures()


def star(rows: list[Row]) -> dict[str, float]:
    """calculate_iou.py: I / U if U > 0 else 1, also for an answer that could not be read, whose mask is empty."""
    tally = Tally()
    for row in rows:
        truth = converted(row.labels)
        i, u = np.logical_and(row.predicted, truth).sum(), np.logical_or(row.predicted, truth).sum()
        tally.add(i, u, i / u if u > 0 else 1.0, bool(truth.any()), not row.predicted.any(), row.answer == "unusable")
    return tally.figures()


def _gres(rows: list[Row], least: int) -> dict[str, float]:
    """refer_evaluation.py, with the label "no target" said by the answer, or by a mask below `least` pixels."""
    tally = Tally()
    for row in rows:
        keep = row.labels != 255
        predicted, truth = row.predicted & keep, (row.labels == 1) & keep
        bad, said = row.answer == "unusable", row.answer == "nothing"
        if not bad and predicted.sum() < least:
            predicted, said = np.zeros_like(predicted), True
        i, u = np.logical_and(predicted, truth).sum(), np.logical_or(predicted, truth).sum()
        if not truth.any():
            tally.add(0, 0 if said else u, 1.0 if said else 0.0, False, said, bad)
        else:
            i = 0 if said else i
            tally.add(i, u, i / u if u else 0.0, True, said, bad)
    return tally.figures()


def rela(rows: list[Row]) -> dict[str, float]:
    return _gres(rows, least=0)


def rela_50(rows: list[Row]) -> dict[str, float]:
    return _gres(rows, least=50)


EVALUATORS: dict[str, Callable[[list[Row]], dict[str, float]]] = {
    "lisa": lisa,
    "segzero": segzero,
    "segzero_scripts": segzero_scripts,
    "vision_reasoner": segzero,  # evaluation_segmentation.py: an empty union becomes I = U = 0, and IoU 0
    "vision_reasoner_no_object": vision_reasoner_no_object,
    "star": star,
    "rela": rela,
    "rela_50": rela_50,
}
