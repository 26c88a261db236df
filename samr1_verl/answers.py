"""Parser from response text to a typed answer, or to the reason why the answer is unusable.

An answer is one JSON value inside `<answer>…</answer>`: an object, or a list of objects. Each object has a box and
points in the policy frame, under one of the published key sets:

    Seg-Zero            {"bbox": [x1, y1, x2, y2], "points_1": [x, y], "points_2": [x, y]}
    SAM-R1              {"bbox": [x1, y1, x2, y2], "points": [[x, y], …], "labels": [1, 0, …]}    labels are optional
    Qwen2.5-VL,
    VisionReasoner      {"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}, or a list of these

Other keys are ignored. Equal points of an object count once, and so do equal objects of an answer, because repeated
points would outweigh a wrong box in the segmenter. They are equal where they round to the same whole numbers.

Strict parsing is for rewards: it repairs nothing. Lenient parsing is for the evaluation of an untrained model. Both
take time linear in the response's length, for every response.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

import json_repair
from pydantic import BaseModel, ConfigDict, PositiveInt

from samr1_verl.geometry.prompt import Box, Point, Prompt

# Limits of text for json-repair, which takes quadratic time: up to 0.7 s for the worst known 1,000 characters.
_REPAIR_CHARACTERS, _REPAIR_DEPTH = 1000, 8
_BOX_KEYS = ("bbox", "bbox_2d", "box")
_NUMBERED_POINTS = ("points_1", "points_2")


class Reason(str, Enum):
    """The reasons why an answer is unusable: a closed set, counted by name in `answer/<reason>`."""

    NO_ANSWER = "no_answer"  # no <answer>…</answer>
    MANY_ANSWERS = "many_answers"  # several or nested <answer>…</answer>
    NOT_JSON = "not_json"  # the text inside is not JSON
    NO_TARGET = "no_target"  # an empty list: the answer says that no such object is in the image
    NO_OBJECT = "no_object"  # JSON, but neither an object nor a list of objects
    MANY_OBJECTS = "many_objects"  # more than Caps.objects
    MISSING_BOX = "missing_box"
    BAD_BOX = "bad_box"  # not four finite numbers
    EMPTY_BOX = "empty_box"  # inverted or without area
    MISSING_POINTS = "missing_points"
    BAD_POINTS = "bad_points"  # not pairs of finite numbers, or labels other than one 0 or 1 per point
    MANY_POINTS = "many_points"  # more than Caps.points
    OUTSIDE = "outside"  # a box without common area with the image, or a point outside the image


class Caps(BaseModel):
    """Maximum number of points and objects of a usable answer; more is `many_points` or `many_objects`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # Per object. Unpublished: Seg-Zero's prompt asks for two points; without a maximum, policies learn endless lists.
    points: PositiveInt = 16
    objects: PositiveInt = 120  # per answer; VisionReasoner's maximum for answer and truth


CAPS = Caps()


@dataclass(frozen=True)
class Answer:
    """A usable answer: one or more objects in the policy frame.

    After strict parsing every object has a box and at least one point, after lenient parsing at least one of the two.
    """

    objects_policy: tuple[Prompt, ...]


@dataclass(frozen=True)
class Unusable:
    """An answer without a usable prompt."""

    reason: Reason
    detail: str  # the fault in words, for logs and people


class _Refusal(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.unusable = Unusable(reason, detail)


_THINK_TO_ANSWER = re.compile(r"</think>\s*<answer>")


def has_think_format(text: str) -> bool:
    """Whether the whole response is `<think>…</think>`, optional white space, `<answer>…</answer>`.

    This is Seg-Zero's rule; SAM-R1 and VisionReasoner refer to it. It equals a full match of
    `<think>.*?</think>\\s*<answer>.*?</answer>` where the dot matches new lines, and takes linear time.
    """
    return thinking(text) is not None


def thinking(text: str) -> str | None:
    """The text between `<think>` and the first `</think>` before an `<answer>`; None: not `has_think_format`."""
    start, end = "<think>", "</answer>"
    if not (text.startswith(start) and text.endswith(end)):
        return None
    border = _THINK_TO_ANSWER.search(text, len(start), len(text) - len(end))
    return None if border is None else text[len(start) : border.start()]


def final_answer(text: str) -> str | None:
    """The text of the response's only `<answer>…</answer>`; None: there is no answer, or there are several."""
    try:
        return _answer_text(text)
    except _Refusal:
        return None


def parse_answer(text: str, caps: Caps = CAPS, *, lenient: bool = False) -> Answer | Unusable:
    """Parse the answer of a response. Never raises, for any text.

    Args:
        text: the response, without special tokens.
        caps: maximum number of points and objects of a usable answer.
        lenient: also accept a missing or repeated `<answer>` (the last counts), code fences, text around the JSON, JSON
            that json-repair can repair, numbers as strings, and objects with only a box or only points.

    Returns:
        The objects in the policy frame, as the policy wrote them, or the first reason why the answer is unusable.
        `within` checks the objects against the image.
    """
    try:
        value = _load_lenient(_answer_text_lenient(text)) if lenient else _load_strict(_answer_text(text))
        objects = value if isinstance(value, list) else [value]
        if not objects:
            raise _Refusal(Reason.NO_TARGET, "an empty list")
        if not all(isinstance(entry, dict) for entry in objects):
            raise _Refusal(Reason.NO_OBJECT, f"expected an object or a list of objects, found {_short(value)}")
        if len(objects) > caps.objects:
            raise _Refusal(Reason.MANY_OBJECTS, f"{len(objects)} objects, expected at most {caps.objects}")
        return Answer(_distinct(_object(entry, lenient, caps.points) for entry in objects))
    except _Refusal as refusal:
        return refusal.unusable


def within(answer: Answer, extent_wh: tuple[float, float]) -> Answer | Unusable:
    """The answer with its boxes clipped to the image; (W, H) of the image in the policy frame is `extent_wh`.

    A box that crosses the border still means a region of the image, so it is clipped. A box without common area with
    the image, or a point outside it, makes the answer unusable, with the reason `outside`. A point on the border is
    inside.
    """
    width, height = extent_wh
    clipped = []
    for target in answer.objects_policy:
        box = target.box
        if box is not None:
            box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
            if box[0] >= box[2] or box[1] >= box[3]:
                return Unusable(Reason.OUTSIDE, f"box {target.box} is outside the {width:g}x{height:g} image")
        for x, y in target.points:
            if not (0 <= x <= width and 0 <= y <= height):
                return Unusable(Reason.OUTSIDE, f"point ({x:g}, {y:g}) is outside the {width:g}x{height:g} image")
        clipped.append(Prompt(box, target.points, target.labels))
    return Answer(tuple(clipped))


def _answer_text(text: str) -> str:
    opened, closed = text.count("<answer>"), text.count("</answer>")
    start, end = text.find("<answer>"), text.find("</answer>")
    if opened > 1 or closed > 1:
        raise _Refusal(Reason.MANY_ANSWERS, f"{opened} <answer> and {closed} </answer>, expected one of each")
    if start < 0 or end < start:
        raise _Refusal(Reason.NO_ANSWER, "no <answer>…</answer>")
    return text[start + len("<answer>") : end]


def _answer_text_lenient(text: str) -> str:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end if end >= 0 else len(text))
    if start >= 0:
        return text[start + len("<answer>") : end if end >= 0 else len(text)]
    return text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text


def _not_finite(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _load_strict(text: str) -> Any:
    try:
        # Every number becomes a float: exact for coordinates, and linear for absurdly long integers.
        return json.loads(text, parse_int=float, parse_constant=_not_finite)
    except ValueError as error:
        raise _Refusal(Reason.NOT_JSON, f"{error}: {_short(text)}") from error
    except RecursionError as error:
        raise _Refusal(Reason.NOT_JSON, f"nested too deeply: {_short(text)}") from error


def _load_lenient(text: str) -> Any:
    """The JSON from the first to the last bracket, as `_load_strict` reads it or else repaired by json-repair."""
    starts = [start for start in (text.find("{"), text.find("[")) if start >= 0]
    if not starts:
        raise _Refusal(Reason.NOT_JSON if text.strip() else Reason.NO_ANSWER, f"no JSON in {_short(text)}")
    end = max(text.rfind("}"), text.rfind("]"))
    core = text[min(starts) : end + 1 if end > min(starts) else len(text)]
    try:
        return _load_strict(core)
    except _Refusal:
        if len(core) > _REPAIR_CHARACTERS or _depth(core) > _REPAIR_DEPTH:
            raise
    try:
        return json_repair.loads(core, skip_json_loads=True)
    except (ValueError, RecursionError) as error:
        raise _Refusal(Reason.NOT_JSON, f"beyond repair ({error}): {_short(core)}") from error


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    return deepest


def _object(entry: dict[str, Any], lenient: bool, max_points: int) -> Prompt:
    box = _box(entry, lenient)
    points = _points(entry, lenient, max_points)
    if box is None and (not lenient or points is None):
        raise _Refusal(Reason.MISSING_BOX, f"no {' or '.join(_BOX_KEYS)} in {_short(entry)}")
    if points is None:
        if not lenient:
            raise _Refusal(Reason.MISSING_POINTS, f"no points_1 and points_2, points or point_2d in {_short(entry)}")
        return Prompt(box)
    labels = entry.get("labels", [1] * len(points)) if "points" in entry else [1] * len(points)
    if not isinstance(labels, list) or len(labels) != len(points):
        raise _Refusal(Reason.BAD_POINTS, f"labels {_short(labels)}, expected one for each of {len(points)} points")
    if any(isinstance(label, bool) or label not in (0, 1) for label in labels):
        raise _Refusal(Reason.BAD_POINTS, f"labels {_short(labels)}, expected 0 or 1 each")
    return _prompt(box, points, [int(label) for label in labels])


def _distinct(objects: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """The objects without repetitions, the first of equal ones."""
    first: dict[tuple[Any, ...], Prompt] = {}
    for target in objects:
        box = None if target.box is None else _rounded(target.box)
        first.setdefault((box, frozenset(zip(map(_rounded, target.points), target.labels, strict=True))), target)
    return tuple(first.values())


def _prompt(box: Box | None, points: Sequence[Point], labels: Sequence[int]) -> Prompt:
    """An object without repeated points, the first of equal ones."""
    first: dict[tuple[Any, ...], tuple[Point, int]] = {}
    for point, label in zip(points, labels, strict=True):
        first.setdefault((_rounded(point), label), (point, label))
    return Prompt(box, tuple(point for point, _ in first.values()), tuple(label for _, label in first.values()))


def _rounded(numbers: Sequence[float]) -> tuple[int, ...]:
    return tuple(map(round, numbers))


def _box(entry: dict[str, Any], lenient: bool) -> Box | None:
    keys = [key for key in _BOX_KEYS if key in entry]
    if not keys:
        return None
    if len(keys) > 1:
        raise _Refusal(Reason.BAD_BOX, f"one object with {' and '.join(keys)}")
    numbers = _numbers(entry[keys[0]], 4, lenient)
    if numbers is None:
        raise _Refusal(Reason.BAD_BOX, f"{keys[0]} is {_short(entry[keys[0]])}, expected four finite numbers")
    x1, y1, x2, y2 = numbers
    if x1 >= x2 or y1 >= y2:
        raise _Refusal(Reason.EMPTY_BOX, f"{keys[0]} is {list(numbers)}, expected x1 < x2 and y1 < y2")
    return x1, y1, x2, y2


def _points(entry: dict[str, Any], lenient: bool, max_points: int) -> tuple[Point, ...] | None:
    lists = []  # of points, one for each key set that the object has
    if any(key in entry for key in _NUMBERED_POINTS):
        lists.append([entry[key] for key in _NUMBERED_POINTS if key in entry])
        if len(lists[0]) < len(_NUMBERED_POINTS) and not lenient:
            raise _Refusal(Reason.MISSING_POINTS, f"points_1 or points_2 is missing in {_short(entry)}")
    if "points" in entry:
        lists.append(entry["points"])
    if "point_2d" in entry:
        lists.append([entry["point_2d"]])
    if len(lists) > 1:
        raise _Refusal(Reason.BAD_POINTS, f"points under several key sets in {_short(entry)}")
    if not lists or lists[0] == []:
        return None
    if not isinstance(lists[0], list):
        raise _Refusal(Reason.BAD_POINTS, f"points is {_short(lists[0])}, expected a list of [x, y]")
    if len(lists[0]) > max_points:
        raise _Refusal(Reason.MANY_POINTS, f"{len(lists[0])} points, expected at most {max_points}")
    points: list[Point] = []
    for value in lists[0]:
        numbers = _numbers(value, 2, lenient)
        if numbers is None:
            raise _Refusal(Reason.BAD_POINTS, f"point {_short(value)}, expected two finite numbers")
        points.append((numbers[0], numbers[1]))
    return tuple(points)


def _numbers(value: Any, count: int, lenient: bool) -> tuple[float, ...] | None:
    """`count` finite numbers; None: the value is something else. Strings count as numbers only when `lenient`."""
    if not isinstance(value, list) or len(value) != count:
        return None
    numbers = [_number(entry, lenient) for entry in value]
    return tuple(number for number in numbers if number is not None) if None not in numbers else None


def _number(value: Any, lenient: bool) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str) if lenient else (int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else reprlib.repr(value)  # reprlib limits large and deep values
    return text if len(text) <= 120 else f"{text[:117]}…"
