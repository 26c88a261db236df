"""The protocol of a policy outside a training: chat messages with images in, texts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from typing_extensions import Self

from samr1_verl import Samr1Error
from samr1_verl.scoring.turns import Response


class PolicyError(Samr1Error, ValueError):
    """A policy cannot be loaded or does not answer; the message says what to do."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. `top_k` 0 and `top_p` 1: from all tokens."""

    temperature: float = 0.0  # 0: greedy, without effect of the other two
    top_k: int = 0  # number of the most probable tokens that may be drawn; 0: all
    top_p: float = 1.0  # the most probable tokens whose probabilities sum to it; 1: all

    def as_json(self) -> dict[str, float]:
        """The values that have an effect."""
        if self.temperature == 0:
            return {"temperature": self.temperature}
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


GREEDY = Sampling()


class Reply(Response):
    """A policy's response.

    Args:
        turns: its text, or the texts of all turns of a dialogue.
        tokens: number of its generated tokens; None: the server does not say.
        ended: False: the last turn was cut off at the maximum number of tokens.
    """

    ended: bool

    def __new__(cls, turns: str | Sequence[str], tokens: int | None, ended: bool = True) -> Self:
        reply = super().__new__(cls, turns, tokens)
        reply.ended = ended
        return reply


class Policy(Protocol):
    """Answers questions. An item is a mapping with `raw_prompt`: chat messages, as `prompts.questions` makes them."""

    @property
    def processor(self) -> Any | None:
        """The model's processor, for a check of the image size; None: the policy is on a server."""

    @property
    def parallel(self) -> int:
        """Maximum number of concurrent calls of `answer`."""

    async def answer(self, items: Sequence[Mapping[str, Any]], seed: int = 0) -> Sequence[str]:
        """One response per item, in the order of the items, without special tokens; a `Reply` where tokens are counted.

        Args:
            seed: seed of the sampling; without effect at temperature 0.

        Raises:
            PolicyError: the policy does not answer.
            ImageError: an image is missing or unreadable.
        """
