"""One object of an answer, and the same thing as a segmenter's prompt: a box, points, or both."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[float, float, float, float]  # x1 y1 x2 y2
Point = tuple[float, float]  # x y


@dataclass(frozen=True)
class Prompt:
    """What to segment. The name of the variable says the frame: `objects_policy`, `prompts_original`.

    `box` is x1 y1 x2 y2 or None; `points` holds (x, y); `labels` has 1 (on the object) or 0 (not on it) per point.
    Hashable, so that equal prompts are decoded once.

    Raises:
        ValueError: neither box nor point, or another number of labels than of points.
    """

    box: Box | None
    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.box is None and not self.points:
            raise ValueError("a prompt needs a box or a point, this one has neither")
        if len(self.points) != len(self.labels):
            raise ValueError(f"{len(self.points)} points and {len(self.labels)} labels, expected one label per point")
