"""A segmenter's prompt, which is also one object of an answer: a box, points, or both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]  # x1 y1 x2 y2
Point = tuple[float, float]  # x y


class OutsideError(ValueError):
    """A box without common area with the image, or a point outside it."""


@dataclass(frozen=True)
class Prompt:
    """A prompt for one object, in the frame that the variable's name says: `objects_policy`, `prompts_original`.

    `box` is x1 y1 x2 y2 or None; `points` holds (x, y); `labels` has 1 (on the object) or 0 (not on it) per point.
    Prompts are hashable, so that equal prompts are decoded once.

    Raises:
        ValueError: there is neither a box nor a point, or the number of labels differs from the number of points.
    """

    box: Box | None
    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.box is None and not self.points:
            raise ValueError("a prompt needs a box or a point, this one has neither")
        if len(self.points) != len(self.labels):
            raise ValueError(f"{len(self.points)} points and {len(self.labels)} labels, expected one label per point")

    @classmethod
    def without_repeats(cls, box: Box | None, points: Sequence[Point], labels: Sequence[int]) -> Prompt:
        """A prompt with the first of equal points: they have one label, and round to the same whole numbers."""
        first: dict[tuple[tuple[int, ...], int], Point] = {}
        for point, label in zip(points, labels, strict=True):
            first.setdefault((_rounded(point), label), point)
        return cls(box, tuple(first.values()), tuple(label for _, label in first))

    def clipped(self, extent_wh: tuple[float, float]) -> Prompt:
        """The prompt with its box clipped to the image, whose (W, H) in the prompt's frame is `extent_wh`.

        Raises:
            OutsideError: the box has no common area with the image, or a point is outside it. Its border is inside.
        """
        width, height = extent_wh
        box = self.box
        if box is not None:
            box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
            if box[0] >= box[2] or box[1] >= box[3]:
                raise OutsideError(f"box {self.box} is outside the {width:g}x{height:g} image")
        for x, y in self.points:
            if not (0 <= x <= width and 0 <= y <= height):
                raise OutsideError(f"point ({x:g}, {y:g}) is outside the {width:g}x{height:g} image")
        return Prompt(box, self.points, self.labels)


def distinct(prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """The first of equal prompts: boxes and points round to the same whole numbers, in any order of the points."""
    first: dict[tuple[object, ...], Prompt] = {}
    for prompt in prompts:
        box = None if prompt.box is None else _rounded(prompt.box)
        points = frozenset(zip(map(_rounded, prompt.points), prompt.labels, strict=True))
        first.setdefault((box, points), prompt)
    return tuple(first.values())


def _rounded(numbers: Sequence[float]) -> tuple[int, ...]:
    return tuple(map(round, numbers))
