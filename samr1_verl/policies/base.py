"""The protocol of a policy outside a training: chat messages with images in, texts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from samr1_verl import Samr1Error


class PolicyError(Samr1Error, ValueError):
    """A policy cannot be loaded or does not answer; the message says what to do."""


class Policy(Protocol):
    """Answers questions. An item is a mapping with `raw_prompt`: chat messages, as `prompts.questions` makes them."""

    @property
    def processor(self) -> Any | None:
        """The model's processor, for a check of the image size; None: the policy is on a server."""

    @property
    def parallel(self) -> int:
        """Maximum number of concurrent calls of `answer`."""

    async def answer(self, items: Sequence[Mapping[str, Any]], seed: int = 0) -> list[str]:
        """One response per item, in the order of the items, without special tokens.

        Args:
            seed: seed of the sampling; without effect at temperature 0.

        Raises:
            PolicyError: the policy does not answer.
            ImageError: an image is missing or unreadable.
        """
