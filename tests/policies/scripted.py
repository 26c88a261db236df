"""A policy that says the texts of a script, one a turn, and keeps what it was asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from samr1_verl.config import RefineConfig
from samr1_verl.policies.base import Reply

REFINE = RefineConfig(max_turns=3, turn_tokens=48, look="tiny")
DONE = "<think>it fits</think><answer>done</answer>"
UNUSABLE = "I see nothing."


def box(*corners: int) -> str:
    """A usable answer with one box, whose mask is the box."""
    objects = [{"bbox_2d": list(corners), "point_2d": list(corners[:2])}]
    return f"<think>here</think><answer>{json.dumps(objects)}</answer>"


def turn_of(item: Mapping[str, Any]) -> int:
    """The number of turns before, from the messages."""
    return sum(message["role"] == "assistant" for message in item["raw_prompt"])


class Scripted:
    """Says `scripts[row][turn]` with 10 tokens; `cut_off` turns have no end. A row without a script has the first."""

    processor = None

    def __init__(self, *scripts: Sequence[str], cut_off: Sequence[str] = (), parallel: int = 1) -> None:
        self.scripts, self.cut_off, self.parallel = scripts, cut_off, parallel
        self.asked: list[list[dict[str, Any]]] = []
        self.seeds: list[int] = []

    async def answer(self, items: Sequence[Mapping[str, Any]], seed: int = 0) -> list[Reply]:
        self.asked.append([dict(item) for item in items])
        self.seeds.append(seed)
        return [self._reply(item) for item in items]

    def generate(self, items: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """As `answer`, for ChatServer, whose questions name no row."""
        return [self._reply(item) for item in items]

    def _reply(self, item: Mapping[str, Any]) -> Reply:
        row = item["extra_info"]["index"] if "extra_info" in item else 0
        text = self.scripts[row % len(self.scripts)][turn_of(item)]
        return Reply(text, 10, ended=text not in self.cut_off)
