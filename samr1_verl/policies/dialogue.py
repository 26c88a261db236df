"""A policy that looks at the mask of its answer and mends it, or says `done`: the dialogue of scoring/refinement.py.

    first turn of all questions ──► masks ──► looks ──► next turn of those that go on ──► … ──► last answers

Outside a training it is what the agent loop `samr1_refine` is inside one: the same messages, the same ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samr1_verl.answers import CAPS, Caps
from samr1_verl.config import RefineConfig
from samr1_verl.policies.base import Policy, Reply
from samr1_verl.scoring.refinement import Refinement, spoken
from samr1_verl.segmenters.base import SegmenterError


@dataclass
class _Dialogue:
    """The turns about one item so far."""

    item: Mapping[str, Any]
    messages: list[dict[str, Any]]
    turns: list[str] = field(default_factory=list)
    tokens: int | None = 0
    ended: bool = True  # whether the last turn has an end

    def question(self) -> dict[str, Any]:
        """The item with all messages so far."""
        return {**self.item, "raw_prompt": list(self.messages)}

    def add(self, response: str) -> None:
        tokens = getattr(response, "tokens", None)
        self.turns.append(str(response))
        self.messages.append(spoken(self.turns[-1]))
        self.tokens = None if tokens is None or self.tokens is None else self.tokens + tokens
        self.ended = getattr(response, "ended", True)


class RefiningPolicy:
    """Asks a policy turn by turn. A response is a `Reply` with the text of the last answer and all turns.

    Args:
        policy: answers a turn; `refine.turn_tokens` is its maximum number of tokens.
        refine: maximum number of turns, and the template of the text beside a mask.
        segmenter: the recipe's `samr1.segmenter` or a client, as for `service.client.get_client`.
        caps: maximum number of points and objects of a usable answer, as in the reward.
        lenient: read answers leniently, as `answers.parse_answer` does.

    Raises:
        ConfigError: there is no such template, or it cannot be used.
    """

    def __init__(
        self, policy: Policy, refine: RefineConfig, segmenter: Any, caps: Caps = CAPS, lenient: bool = False
    ) -> None:
        self._policy = policy
        self._refinement = Refinement(refine, segmenter, caps, lenient)

    @property
    def processor(self) -> Any | None:
        """As `Policy.processor`."""
        return self._policy.processor

    @property
    def parallel(self) -> int:
        """As `Policy.parallel`."""
        return self._policy.parallel

    async def answer(self, items: Sequence[Mapping[str, Any]], seed: int = 0) -> list[Reply]:
        """As `Policy.answer`, for whole dialogues. Those that go on ask for their next turn together.

        Raises:
            PolicyError: the policy does not answer.
            ConfigError, RowError, ImageError, SegmenterError: as `Refinement.look`.
        """
        dialogues = [_Dialogue(item, list(item["raw_prompt"])) for item in items]
        going, turn = dialogues, 0
        while going:
            questions = [dialogue.question() for dialogue in going]
            responses = await self._policy.answer(questions, turn_seed(seed, turn))
            for dialogue, response in zip(going, responses, strict=True):
                dialogue.add(response)
            goes_on = await asyncio.gather(*map(self._look, going))
            going, turn = [dialogue for dialogue, more in zip(going, goes_on, strict=True) if more], turn + 1
        return [Reply(dialogue.turns, dialogue.tokens, dialogue.ended) for dialogue in dialogues]

    async def _look(self, dialogue: _Dialogue) -> bool:
        """Add the look after the last turn. Returns whether there is one, so that the dialogue goes on."""
        if not dialogue.ended:
            return False
        try:
            look = await self._refinement.look(dialogue.item, dialogue.turns)
        except SegmenterError as error:
            where = f"row {dialogue.item['extra_info']['index']}: turn {len(dialogue.turns)}"
            raise type(error).within(where, error) from error
        if look is not None:
            dialogue.messages.append(look)
        return look is not None


def turn_seed(seed: int, turn: int) -> int:
    """The seed of a turn, from 0: the answer's own for the first, 32 unrelated bits for the others."""
    return seed if turn == 0 else int(np.random.SeedSequence([seed, turn]).generate_state(1)[0])
