"""Comparison of boxes and points, as in Seg-Zero and VisionReasoner, and the parser of VisionReasoner's answers.

Coordinates are in pixels of the resized image that the policy saw. Boxes are x1 y1 x2 y2 with inclusive corners: a box
is x2 - x1 + 1 wide. In the published functions every term is 0 after any error; `MALFORMED` lists these errors.

Legend: M is the number of objects of the answer, N of the row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from samr1_verl.scoring.rollout import Rollout

# Exceptions of parsing and comparing the values of any JSON text.
MALFORMED = (TypeError, ValueError, LookupError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Constants:
    """VisionReasoner's thresholds (arXiv 2505.12081, section 3.3, and its code); StAR and Dr. Seg use the same."""

    box_iou: float = 0.5  # the IoU must be above
    box_l1: float = 10.0  # pixels; the mean over the four coordinates must be below
    point: float = 30.0  # pixels; the distance must be below, and the point in or on its own box
    objects: int = 120  # maximum number of objects of answer and row; further objects are ignored


CONSTANTS = Constants()


@dataclass(frozen=True, eq=False)
class Pairs:
    """Every object of an answer compared with every object of its row; all arrays are [M, N] float64."""

    iou: np.ndarray  # of the boxes, in [0, 1]
    distance: np.ndarray  # of the points, in pixels
    box_iou: np.ndarray  # 1 where `iou` passes its threshold, else 0
    box_l1: np.ndarray  # 1 where the boxes' L1 distance passes its threshold, else 0
    point: np.ndarray  # 1 where `distance` passes its threshold and the point is in its box, else 0

    @property
    def larger(self) -> int:
        """max(M, N), the divisor of sums over matched objects."""
        return max(self.iou.shape)


def answer_value(text: str) -> Any:
    """The JSON value between the first `<answer>` and the next `</answer>`, as in VisionReasoner's code.

    Raises:
        ValueError, RecursionError: the tags are missing, or the text between them is not JSON.
    """
    start = text.index("<answer>") + len("<answer>")
    # Every number becomes a float: exact for coordinates, linear in time for absurdly long integers.
    return json.loads(text[start : text.index("</answer>", start)].strip(), parse_int=float)


def format_of(text: str, box: float, point: float, label: float = 0.0) -> float:
    """VisionReasoner's answer format in [0, box + point + label]: the mean score of the objects' keys.

    As in the published code, a malformed object ends the sum, and the scores of the objects before it count.

    Args:
        text: the response.
        box: score of a list of 4 under `bbox_2d`.
        point: score of a list of 2 under `point_2d`.
        label: score of a string under `label` that is not blank (StAR).
    """
    total, count = 0.0, 1
    try:
        objects = answer_value(text)
        count = max(1, len(objects))
        for entry in objects:
            total += box * _is_list(entry, "bbox_2d", 4) + point * _is_list(entry, "point_2d", 2)
            if label:  # VisionReasoner's rule does not look at labels, which would be an error in some entries
                total += label * ("label" in entry and isinstance(entry["label"], str) and entry["label"].strip() != "")
    except MALFORMED:
        pass
    return min(total / count, box + point + label)


def _is_list(entry: Any, key: str, size: int) -> bool:
    return key in entry and isinstance(entry[key], list) and len(entry[key]) == size


def objects_of(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [M, 4] and points [M, 2] of an answer's first 120 objects, float64, policy frame, as the policy wrote them.

    Raises:
        one of MALFORMED: the answer is not a list of objects with four and two numbers each.
    """
    objects = answer_value(text)
    boxes = np.array([entry["bbox_2d"] for entry in objects][: CONSTANTS.objects])
    points = np.array([entry["point_2d"] for entry in objects][: CONSTANTS.objects])
    if boxes.dtype.kind != "f" or points.dtype.kind != "f" or boxes.shape[1:] != (4,) or points.shape[1:] != (2,):
        raise ValueError("expected four and two numbers per object")
    return boxes, points


def pairs_of(rollout: Rollout) -> Pairs | None:
    """The answer's objects compared with the row's objects, of which the first point counts.

    None: the answer is unreadable, or answer or row has no object. All terms over pairs are 0 then.

    Raises:
        RowError: the row has no boxes or points.
    """
    true_boxes = rollout.true_boxes()[: CONSTANTS.objects]
    true_points = rollout.true_points(1)[: CONSTANTS.objects, 0]
    try:
        boxes, points = (rollout.pixels(part) for part in objects_of(rollout.text))
    except MALFORMED:
        return None
    return compare(boxes, points, true_boxes, true_points) if len(true_boxes) else None


def compare(boxes: np.ndarray, points: np.ndarray, true_boxes: np.ndarray, true_points: np.ndarray) -> Pairs:
    """All M·N pairs of boxes [M, 4] and points [M, 2] of an answer with boxes [N, 4] and points [N, 2] of a row."""
    with np.errstate(all="ignore"):  # an answer may hold 1e308 or NaN; they fail every threshold
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
    """IoU [M, N] of boxes [M, 4] and [N, 4] with inclusive corners, as in VisionReasoner, StAR and Dr. Seg.

    Boxes that share a column of pixels overlap by it: the intersection is max(0, x2 - x1 + 1) · max(0, y2 - y1 + 1).
    """
    low, high = _common(boxes, true_boxes)
    return _ratio(np.maximum(0, high - low + 1).prod(axis=2), boxes, true_boxes)


def seg_zero_iou(boxes: np.ndarray, true_boxes: np.ndarray) -> np.ndarray:
    """`inclusive_iou` as in Seg-Zero: 0 where the common corners are not x1 < x2 and y1 < y2."""
    low, high = _common(boxes, true_boxes)
    overlaps = (low < high).all(axis=2)
    return _ratio(np.where(overlaps, (high - low + 1).prod(axis=2), 0.0), boxes, true_boxes)


def _common(boxes: np.ndarray, true_boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last corner, [M, N, 2] each, of the common part of every pair."""
    low = np.maximum(boxes[:, None, :2], true_boxes[None, :, :2])
    return low, np.minimum(boxes[:, None, 2:], true_boxes[None, :, 2:])


def _ratio(intersection: np.ndarray, boxes: np.ndarray, true_boxes: np.ndarray) -> np.ndarray:
    areas, true_areas = ((corners[:, 2:] - corners[:, :2] + 1).prod(axis=1) for corners in (boxes, true_boxes))
    return intersection / (areas[:, None] + true_areas[None] - intersection)


def best_matching(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column indices, [min(M, N)] each, of the one-to-one matching with the largest sum of [M, N] scores.

    The Hungarian method.
    """
    return linear_sum_assignment(scores, maximize=True)
