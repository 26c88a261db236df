"""The turns of a policy that looks at its mask: their texts, and the one whose mask counts.

A turn is an answer with box and points, as in a single turn, or `<answer>done</answer>`, which keeps the mask of the
turn before. The agent loop hands the texts of all turns to the reward, under the key TURNS of `extra_info`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samr1_verl.answers import final_answer

TURNS = "turns"  # key of extra_info: the texts of all turns, without special tokens
DONE = "done"


def says_done(text: str) -> bool:
    """Whether the turn's only answer is the word `done`."""
    answer = final_answer(text)
    return answer is not None and answer.strip() == DONE


def turns_of(text: str, extra_info: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of a rollout's turns, at least one; of a rollout without TURNS: its whole response."""
    return tuple(extra_info.get(TURNS) or (text,))


def answers_of(turns: Sequence[str]) -> tuple[str, ...]:
    """The turns that make a mask, at least one: without the last one where it says `done` about an earlier mask."""
    return tuple(turns[:-1] if len(turns) > 1 and says_done(turns[-1]) else turns)
