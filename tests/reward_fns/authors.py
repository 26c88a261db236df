"""The authors' rewards, written again from the description of their code: loops over objects, nothing of the package.

Sources: dvlab-research/Seg-Zero and its successor VisionReasoner (`seg_restrict.py`, `vision_reasoner.py`), StAR
(ysj9909/StAR, the same folder) and Dr. Seg (xVI-group-SCU/Dr-Seg, `dr_seg.py`), all under verl/utils/reward_score.
Boxes and points are in pixels of the policy's image; a row is a list of (box, point).
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Sequence
from itertools import permutations
from typing import Any

Truth = Sequence[tuple[Sequence[float], Sequence[float]]]
THINK = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
MOST = 120


def think(text: str) -> float:
    return float(THINK.fullmatch(text) is not None)


def answer_format(text: str, box: float, point: float, label: float | None = None) -> float:
    """Mean over the answer's objects; an error ends it. `label` None: the rule does not look at labels."""
    total = 0.0
    with contextlib.suppress(Exception):
        entries = json.loads(ANSWER.search(text).group(1))
        for entry in entries:
            own = 0.0
            for key, size, worth in (("bbox_2d", 4, box), ("point_2d", 2, point)):
                if key in entry and isinstance(entry[key], list) and len(entry[key]) == size:
                    own += worth
            if label is not None and "label" in entry and isinstance(entry["label"], str) and entry["label"].strip():
                own += label
            total += own / len(entries)
    return total


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """VisionReasoner's: max(0, x2 - x1 + 1) each way."""
    wide = max(0, min(one[2], other[2]) - max(one[0], other[0]) + 1)
    high = max(0, min(one[3], other[3]) - max(one[1], other[1]) + 1)
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (one, other)]
    union = sum(areas) - wide * high
    return wide * high / union if union else math.nan


def pair(one: tuple[Any, Any], other: tuple[Any, Any]) -> int:
    """The three points of a pair of objects."""
    (box, point), (true_box, true_point) = one, other
    near = math.dist(point, true_point) < 30 and box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]
    return (iou(box, true_box) > 0.5) + (sum(abs(a - b) for a, b in zip(box, true_box, strict=True)) / 4 < 10) + near


def matchings(count: int, true: int) -> list[list[tuple[int, int]]]:
    """All one-to-one matchings of the smaller side."""
    if count <= true:
        return [list(enumerate(chosen)) for chosen in permutations(range(true), count)]
    return [[(row, column) for column, row in enumerate(chosen)] for chosen in permutations(range(count), true)]


def plain_numbers(values: list[Any], size: int) -> list[list[float]]:
    """Numbers as numpy makes them without a dtype: strings stay strings, and booleans alone cannot be subtracted."""
    kinds = set()
    for value in values:
        if not isinstance(value, list) or len(value) != size:
            raise ValueError(value)
        kinds |= {type(one) for one in value}
    if kinds - {int, float, bool} or kinds == {bool}:
        raise ValueError(values)
    return values


def forced_numbers(values: list[Any], size: int) -> list[list[float]]:
    """Numbers as numpy makes them with dtype=float: strings of numbers and booleans become numbers."""
    for value in values:
        if not isinstance(value, list) or len(value) != size:
            raise ValueError(value)
    return [[float(one) for one in value] for value in values]


def vision_reasoner_accuracy(text: str, truth: Truth) -> float:
    try:
        entries = json.loads(ANSWER.search(text).group(1))
        boxes = plain_numbers([entry["bbox_2d"] for entry in entries][:MOST], 4)
        points = plain_numbers([entry["point_2d"] for entry in entries][:MOST], 2)
        if not boxes or not truth:
            return 0.0
        found = list(zip(boxes, points, strict=True))
        best = max(
            sum(pair(found[row], truth[column]) for row, column in matching)
            for matching in matchings(len(found), len(truth))
        )
        return best / max(len(found), len(truth))
    except Exception:
        return 0.0


def vision_reasoner_non_repetition(text: str) -> float:
    seen: set[str] = set()
    repeats = 0
    for part in filter(None, (part.strip() for part in text.split("."))):
        repeats += part in seen
        seen.add(part)
    return float(repeats < 2)


def dr_seg_metrics(text: str, truth: Truth) -> tuple[float, set[tuple[float, float]]]:
    """`count`, and the possible pairs of `iou` and `point`: the code takes one of the best matchings."""
    try:
        data = json.loads(ANSWER.search(text).group(1))
        entries = data if isinstance(data, list) else []
        boxes, points = [entry["bbox_2d"] for entry in entries], [entry["point_2d"] for entry in entries]
    except Exception:
        boxes, points = [], []
    boxes, points = boxes[:MOST], points[:MOST]
    larger = max(len(boxes), len(truth))
    count = 1.0 if larger == 0 else min(len(boxes), len(truth)) / larger
    try:
        if not boxes or not truth:
            return count, {(0.0, 0.0)}
        found = list(zip(forced_numbers(boxes, 4), forced_numbers(points, 2), strict=True))
        possible = matchings(len(found), len(truth))
        totals = [sum(pair(found[row], truth[column]) for row, column in one) for one in possible]
        best = [one for one, total in zip(possible, totals, strict=True) if total == max(totals)]
        return count, {
            (
                sum(iou(found[row][0], truth[column][0]) for row, column in one) / len(one),
                sum(near(math.dist(found[row][1], truth[column][1])) for row, column in one) / len(one),
            )
            for one in best
        }
    except Exception:
        return count, {(0.0, 0.0)}


def near(distance: float) -> float:
    return 1.0 if distance <= 30 else 0.0 if distance >= 200 else (200 - distance) / 170


def dr_seg_look(text: str) -> float:
    for tag in ("think", "answer"):
        section = re.search(rf"<{tag}>\s*(.*?)\s*</{tag}>", text, re.DOTALL)
        if section and re.search(r"<look>\s*\S[\s\S]*?</look>", section.group(1)):
            return 1.0
    return 0.0


def dr_seg_non_repetition(text: str) -> float:
    for first, second, third in (
        ("your", "reasoning", "text"),
        ("your", "visual", "focus"),
        ("more", "reasoning", "text"),
    ):
        if re.search(rf"\b{first}[\s\W]*{second}[\s\W]*{third}\b", text, re.IGNORECASE):
            return 0.0
    seen: set[str] = set()
    repeats = 0
    for part in re.split("[.\u3002!?\uff1f\uff01\u2026]+", text):
        plain = part.strip().strip(" \"'\u201c\u201d\u2018\u2019[](){}\uff0c,;:\u3001")
        plain = re.sub(r"\s+", " ", plain).lower()
        if plain:
            repeats += plain in seen
            seen.add(plain)
    return float(repeats < 2)


def seg_zero(text: str, box: Sequence[float], points: Sequence[Sequence[float]]) -> dict[str, float]:
    """All five terms for a row with one box and two points; each is 0 after an error of its own."""

    def first() -> Any:
        return json.loads(re.search(r"{[^}]+}", text).group(0))

    def well_formed() -> bool:
        value = first()
        sizes = {"bbox": 4, "points_1": 2, "points_2": 2}
        return all(isinstance(value[key], list) and len(value[key]) == size for key, size in sizes.items())

    def read_box() -> list[float]:
        value = first()["bbox"]
        if len(value) != 4:
            raise ValueError(value)
        return value

    def overlap() -> bool:
        one = read_box()
        x1, y1, x2, y2 = max(one[0], box[0]), max(one[1], box[1]), min(one[2], box[2]), min(one[3], box[3])
        inside = (x2 - x1 + 1) * (y2 - y1 + 1) if x1 < x2 and y1 < y2 else 0
        areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (one, box)]
        return inside / (sum(areas) - inside) > 0.5

    def distance() -> bool:
        return sum(abs(a - b) for a, b in zip(read_box(), box, strict=True)) / 4 < 10

    def both_points() -> bool:
        value, own = first(), read_box()
        pairs = [[int(value[key][0]), int(value[key][1])] for key in ("points_1", "points_2")]
        if not all(own[0] <= x <= own[2] and own[1] <= y <= own[3] for x, y in pairs):
            return False
        straight = math.dist(pairs[0], points[0]) + math.dist(pairs[1], points[1])
        crossed = math.dist(pairs[0], points[1]) + math.dist(pairs[1], points[0])
        return min(straight, crossed) / 2 < 100

    def term(rule: Any) -> float:
        try:
            return float(rule())
        except Exception:
            return 0.0

    rules = {"format": well_formed, "box_iou": overlap, "box_l1": distance, "points": both_points}
    return {"think": think(text), **{name: term(rule) for name, rule in rules.items()}}
