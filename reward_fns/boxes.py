"""Boxes and points against each other, as Seg-Zero and VisionReasoner compare them, and VisionReasoner's answers.

Everything is in pixels of the image the policy saw. Boxes are x1 y1 x2 y2 with inclusive corners: a box is
x2 - x1 + 1 wide. The published functions end every term at 0 on any error; here `MALFORMED` names those errors.

Legend: M objects of the answer, N of the row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from samr1_verl.scoring.rollout import Rollout

# Exceptions that reading and comparing the values of an arbitrary JSON text can raise.
MALFORMED = (TypeError, ValueError, LookupError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Constants:
    """VisionReasoner's thresholds (arXiv 2505.12081, section 3.3, and its code), which StAR and Dr. Seg keep."""

    box_iou: float = 0.5  # strictly above
    box_l1: float = 10.0  # mean over the four coordinates, strictly below, pixels
    point: float = 30.0  # distance, strictly below, pixels; the point must lie in its own box, borders included
    objects: int = 120  # on each side; the rest is ignored


CONSTANTS = Constants()


@dataclass(frozen=True, eq=False)
class Pairs:
    """The M objects of an answer against the N of its row, float64 [M, N] each.

    `iou` and `distance` are continuous; `box_iou`, `box_l1` and `point` are 0 or 1.
    """

    iou: np.ndarray
    distance: np.ndarray
    box_iou: np.ndarray
    box_l1: np.ndarray
    point: np.ndarray

    @property
    def larger(self) -> int:
        """max(M, N), by which sums over matched objects are divided."""
        return max(self.iou.shape)


def answer_value(text: str) -> Any:
    """The JSON value between the first `<answer>` and the `</answer>` that follows, as VisionReasoner reads it.

    Raises:
        ValueError, RecursionError: no tags, or no JSON between them.
    """
    start = text.index("<answer>") + len("<answer>")
    # Every number becomes a float: exact for coordinates, linear in time for absurdly long integers.
    return json.loads(text[start : text.index("</answer>", start)].strip(), parse_int=float)


def format_of(text: str, box: float, point: float, label: float = 0.0) -> float:
    """VisionReasoner's answer format in [0, box + point + label]: the mean over objects of what well-formed keys earn.

    Args:
        text: the response.
        box: what a list of 4 under `bbox_2d` earns.
        point: what a list of 2 under `point_2d` earns.
        label: what a string under `label` that is not blank earns (StAR).

    What was earned before an object that is none stays, as in the published code.
    """
    earned, count = 0.0, 1
    try:
        objects = answer_value(text)
        count = max(1, len(objects))
        for entry in objects:
            earned += box * _is_list(entry, "bbox_2d", 4) + point * _is_list(entry, "point_2d", 2)
            earned += label * ("label" in entry and isinstance(entry["label"], str) and entry["label"].strip() != "")
    except MALFORMED:
        pass
    return min(earned / count, box + point + label)


def _is_list(entry: Any, key: str, size: int) -> bool:
    return key in entry and isinstance(entry[key], list) and len(entry[key]) == size


def objects_of(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [M, 4] and points [M, 2] of an answer, float64, as the policy wrote them: the first 120 objects.

    Raises:
        one of MALFORMED: the answer is no list of objects that each have four and two numbers.
    """
    objects = answer_value(text)
    boxes = np.array([entry["bbox_2d"] for entry in objects][: CONSTANTS.objects])
    points = np.array([entry["point_2d"] for entry in objects][: CONSTANTS.objects])
    if boxes.dtype.kind != "f" or points.dtype.kind != "f" or boxes.shape[1:] != (4,) or points.shape[1:] != (2,):
        raise ValueError("expected four and two numbers per object")
    return boxes, points


def pairs_of(rollout: Rollout) -> Pairs | None:
    """The answer's objects against the row's, whose point is the first of each object.

    None where the answer cannot be read, or one side has no object: whatever is built on pairs is 0 then.

    Raises:
        RowError: the row lacks boxes or points.
    """
    true_boxes = rollout.true_boxes()[: CONSTANTS.objects]
    true_points = rollout.true_points(1)[: CONSTANTS.objects, 0]
    try:
        boxes, points = (rollout.pixels(part) for part in objects_of(rollout.text))
    except MALFORMED:
        return None
    return compare(boxes, points, true_boxes, true_points) if len(true_boxes) else None


def compare(boxes: np.ndarray, points: np.ndarray, true_boxes: np.ndarray, true_points: np.ndarray) -> Pairs:
    """All M·N pairs of boxes [M, 4], points [M, 2] with boxes [N, 4], points [N, 2]."""
    with np.errstate(all="ignore"):  # 1e308 and NaN are numbers too; they compare as false
        iou = inclusive_iou(boxes, true_boxes)
        l1 = np.abs(boxes[:, None] - true_boxes[None]).mean(axis=2)
        distance = np.sqrt(((points[:, None] - true_points[None]) ** 2).sum(axis=2))
        inside = np.asarray(((points >= boxes[:, :2]) & (points <= boxes[:, 2:])).all(axis=1))
        return Pairs(
            iou=np.nan_to_num(iou, nan=0.0),
            distance=np.nan_to_num(distance, nan=np.inf),
            box_iou=(iou > CONSTANTS.box_iou).astype(float),
            box_l1=(l1 < CONSTANTS.box_l1).astype(float),
            point=((distance < CONSTANTS.point) & inside[:, None]).astype(float),
        )


def inclusive_iou(boxes: np.ndarray, true_boxes: np.ndarray) -> np.ndarray:
    """IoU [M, N] of boxes [M, 4] and [N, 4], inclusive corners; they meet where x and y both overlap by more than 0."""
    low = np.maximum(boxes[:, None, :2], true_boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], true_boxes[None, :, 2:])
    intersection = np.where((low < high).all(axis=2), (high - low + 1).prod(axis=2), 0.0)
    areas, true_areas = ((corners[:, 2:] - corners[:, :2] + 1).prod(axis=1) for corners in (boxes, true_boxes))
    return intersection / (areas[:, None] + true_areas[None] - intersection)


def best_matching(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the one-to-one matching of [M, N] scores with the largest sum (Hungarian)."""
    return linear_sum_assignment(scores, maximize=True)
