"""The form of the answers that a prompt asks for, for answers that are written without a policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samr1_verl.prompts.templates import is_file, prompt_text


@dataclass(frozen=True)
class AnswerForm:
    """The keys of an object, and whether an answer is a list of objects.

    Args:
        template: name of a template of ours, as `like` returns it.
    """

    template: str

    @property
    def lists(self) -> bool:
        """Whether an answer is always a list of objects; else a single object stands alone."""
        return self.template in ("vision_reasoner", "star")

    @property
    def points(self) -> int:
        """Number of points of an object."""
        return 1 if self.lists else 2

    def entry(self, box: Sequence[float], points: Sequence[Sequence[float]]) -> dict[str, Any]:
        """One object of an answer.

        Args:
            box: x1 y1 x2 y2. points: [x, y] each, at least `self.points` of them; only these are used.
        """
        if self.template == "refine":
            return {"bbox": list(box), "points": [list(point) for point in points[: self.points]], "labels": [1, 1]}
        if not self.lists:
            return {"bbox": list(box), "points_1": list(points[0]), "points_2": list(points[1])}
        label = {"label": "object"} if self.template == "star" else {}
        return {**label, "bbox_2d": list(box), "point_2d": list(points[0])}

    def answer(self, entries: Sequence[dict[str, Any]]) -> str:
        """The JSON of an answer. No entry: the answer that there is no such object."""
        return json.dumps(entries[0] if len(entries) == 1 and not self.lists else entries)


def like(prompt: str) -> str:
    """The template of ours whose answers have the form that `samr1.prompt` asks for.

    A file of the user's is told by the keys that its text names.
    """
    if not is_file(prompt):
        return prompt
    text = prompt_text(prompt)
    if "bbox_2d" not in text:
        return "refine" if '"labels"' in text else "seg_zero"
    return "star" if "label" in text else "vision_reasoner"


def response(thought: str, answer: str) -> str:
    """A whole response with think and answer tags."""
    return f"<think>{thought}</think><answer>{answer}</answer>"
