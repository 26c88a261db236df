"""The protocol of a policy outside a training: chat messages with images in, texts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from samr1_verl import Samr1Error


class PolicyError(Samr1Error, ValueError):
    """A policy that cannot be loaded or asked; the message says what was found, what was expected and what to do."""


class Policy(Protocol):
    """Answers questions. An item is a mapping with `raw_prompt`, chat messages as `prompts.questions.item_of` makes them."""

    @property
    def processor(self) -> Any | None:
        """The model's processor, which knows what image sizes it keeps; None where it is out of reach."""

    @property
    def parallel(self) -> int:
        """Calls of `answer` that may wait at the same time."""

    async def answer(self, items: Sequence[Mapping[str, Any]], seed: int = 0) -> list[str]:
        """One response for each item, in order, special tokens removed.

        Args:
            seed: of a policy that samples; with greedy decoding without effect.

        Raises:
            PolicyError: there is no answer to be had.
            ImageError: an image is missing or unreadable.
        """
