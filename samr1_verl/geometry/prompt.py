"""A segmenter's prompt, which is also one object of an answer: a box, points, or both."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[float, float, float, float]  # x1 y1 x2 y2
Point = tuple[float, float]  # x y


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
