"""The terms of Dr. Seg's reward over one response: metrics of boxes and points, looks, and repetition.

They are those of its code (docs/rewards.md names it), but for the differences that reward_fns/dr_seg.py lists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward_fns.boxes import CONSTANTS as BOXES
from reward_fns.boxes import MALFORMED, answer_value, best_matching, compare
from samr1_verl.scoring.rollout import Rollout


@dataclass(frozen=True)
class Constants:
    """The terms' constants, from the reward's code; the thresholds of the matching are in reward_fns/boxes.py."""

    near: float = 30.0  # distance in pixels up to which a point scores 1
    far: float = 200.0  # distance in pixels from which a point scores 0; linear in between
    repeats: int = 2  # number of repeated sentences from which `non_repetition` is 0
    # Words of the prompt's own example. A response that repeats them in a row has no thought of its own.
    placeholders: tuple[tuple[str, ...], ...] = (
        ("your", "reasoning", "text"),
        ("your", "visual", "focus"),
        ("more", "reasoning", "text"),
    )


CONSTANTS = Constants()
_PLACEHOLDERS = [re.compile(r"\b" + r"\W*".join(words) + r"\b", re.IGNORECASE) for words in CONSTANTS.placeholders]
_ENDS = re.compile(r"[.。!?？！…]+")  # noqa: RUF001
_AROUND = " \"'“”‘’[](){}，,;:、"  # noqa: RUF001


def metrics_of(rollout: Rollout, count_unread: bool = True) -> tuple[float, float, float]:
    """The metrics `iou`, `count` and `point`, each in [0, 1].

    `iou` and `point` are means over matched objects, and 0 where a coordinate cannot be read. `count` is min(M, N) /
    max(M, N) over the entries of the answer, and 1 where answer and row have none. As in the published code, the
    coordinates need not be readable for it, and an unreadable answer has no entry.

    Args:
        count_unread: False: `count` is 0 where a coordinate cannot be read.

    Raises:
        RowError: the row has no boxes or points.
    """
    true_boxes = rollout.true_boxes()[: BOXES.objects]
    true_points = rollout.true_points(1)[: BOXES.objects, 0]
    boxes, points = _entries(rollout.text)
    larger = max(len(boxes), len(true_boxes))
    count = min(len(boxes), len(true_boxes)) / larger if larger else 1.0
    try:
        numbers = _numbers(rollout, boxes, 4), _numbers(rollout, points, 2)
        iou, point = _matched(*numbers, true_boxes, true_points)
    except MALFORMED:
        return 0.0, count if count_unread else 0.0, 0.0
    return iou, count, point


def _entries(text: str) -> tuple[list[Any], list[Any]]:
    """`bbox_2d` and `point_2d` of the answer's first 120 entries, as JSON values; none of an unreadable answer."""
    try:
        value = answer_value(text)
        entries = value if isinstance(value, list) else []
        boxes, points = [entry["bbox_2d"] for entry in entries], [entry["point_2d"] for entry in entries]
    except MALFORMED:
        return [], []
    return boxes[: BOXES.objects], points[: BOXES.objects]


def _numbers(rollout: Rollout, values: list[Any], size: int) -> np.ndarray:
    """Values as [M, size] float64 in pixels of the resized image; like the code, numbers in strings count as numbers.

    Raises:
        one of MALFORMED: a value is not `size` numbers, or there is no value.
    """
    numbers = np.array(values, dtype=np.float64)
    if numbers.shape[1:] != (size,):
        raise ValueError(f"expected {size} numbers per object")
    return rollout.pixels(numbers)


def _matched(
    boxes: np.ndarray, points: np.ndarray, true_boxes: np.ndarray, true_points: np.ndarray
) -> tuple[float, float]:
    """Mean IoU and mean point score of the matched objects; both 0 where the row has no object."""
    if not len(true_boxes):
        return 0.0, 0.0
    pairs = compare(boxes, points, true_boxes, true_points)
    near, far = CONSTANTS.near, CONSTANTS.far
    scores = np.clip((far - pairs.distance) / (far - near), 0.0, 1.0)
    # The second summand only breaks ties: its sum is at most 1e-3 x 2 x 120, below the step of 1 between matchings.
    matched = best_matching(pairs.box_iou + pairs.box_l1 + pairs.point + 1e-3 * (pairs.iou + scores))
    return float(pairs.iou[matched].mean()), float(scores[matched].mean())


def looks(text: str) -> float:
    """1 where thinking or answer contains a `<look>…</look>` that is not blank (the look-to-confirm format), else 0."""
    for tag in ("think", "answer"):
        _, _, rest = text.partition(f"<{tag}>")
        body, closed, _ = rest.partition(f"</{tag}>")
        _, _, inner = body.partition("<look>")
        # As in the code, the first word after `<look>` may be the tag of a blank look, if a later `</look>` follows it.
        if closed and "</look>" in inner.lstrip()[1:]:
            return 1.0
    return 0.0


def non_repetition(text: str) -> float:
    """0 where two or more sentences are repetitions, or the words of a placeholder stand in a row; else 1.

    Sentences end at the marks of Latin and Chinese text. They are compared in lower case, without surrounding quotes,
    brackets and commas, and with single spaces; empty ones do not count.
    """
    if any(pattern.search(text) for pattern in _PLACEHOLDERS):
        return 0.0
    parts = (re.sub(r"\s+", " ", part.strip().strip(_AROUND)).lower() for part in _ENDS.split(text))
    sentences = [part for part in parts if part]
    return float(len(sentences) - len(set(sentences)) < CONSTANTS.repeats)
