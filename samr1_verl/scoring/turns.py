"""The turns of a policy that looks at its mask: their texts, and the one whose mask counts.

A turn is an answer with box and points, as in a single turn, or `<answer>done</answer>`, which keeps the mask of the
turn before. The agent loop hands the texts of all turns to the reward, under the key TURNS of `extra_info`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import Self

from samr1_verl.answers import final_answer

TURNS = "turns"  # key of extra_info: the texts of all turns, without special tokens
DONE = "done"


class Response(str):
    """A response with `turns`, the texts of its turns, at least one. Its own text is that of the last answer.

    Readers of answers therefore need not know about turns.

    Args:
        turns: the text of a single turn, or the texts of all turns.
        tokens: number of generated tokens of all turns; None: unknown.
    """

    turns: tuple[str, ...]
    tokens: int | None

    def __new__(cls, turns: str | Sequence[str], tokens: int | None = None) -> Self:
        texts = (str(turns),) if isinstance(turns, str) else tuple(map(str, turns))
        response = super().__new__(cls, answers_of(texts)[-1])
        response.turns, response.tokens = texts, tokens
        return response


def says_done(text: str) -> bool:
    """Whether the turn's only answer is the word `done`."""
    answer = final_answer(text)
    return answer is not None and answer.strip() == DONE


def turns_of(text: str, extra_info: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of a rollout's turns, at least one; of a rollout without TURNS: its whole response."""
    return tuple(extra_info.get(TURNS) or (text,))


def turns_in(response: str) -> tuple[str, ...]:
    """The texts of a response's turns; of a plain text: the text alone."""
    return response.turns if isinstance(response, Response) else (response,)


def answers_of(turns: Sequence[str]) -> tuple[str, ...]:
    """The turns that make a mask, at least one: without the last one where it says `done` about an earlier mask."""
    return tuple(turns[:-1] if len(turns) > 1 and says_done(turns[-1]) else turns)
