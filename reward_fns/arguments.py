"""Reading of the two keyword arguments of every reward in this folder: `segmenter` and `reward`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reward_fns.terms import TERMS, reasons, think, weigh
from samr1_verl.answers import CAPS, Caps, final_answer
from samr1_verl.config import ConfigError, RewardConfig, once_per_object, reward_config
from samr1_verl.scoring.rollout import Rollout, with_masks

VERLS_OWN = ("reward_router_address", "reward_model_tokenizer")  # arguments that verl adds where it has a reward model


@dataclass(frozen=True)
class Arguments:
    """A reward's values: its own values, replaced where the recipe's `samr1.reward` sets others."""

    weights: Mapping[str, float]  # weights of components and further terms, by name
    caps: Caps  # maximum number of points and objects of a usable answer
    config: RewardConfig
    further: tuple[str, ...]  # terms that are not the reward's own components
    own_masks: bool  # whether the reward's own components compare masks

    @property
    def compares_masks(self) -> bool:
        """Whether a score needs a segmenter."""
        return self.own_masks or self.term_of_masks is not None

    @property
    def term_of_masks(self) -> str | None:
        """Name of the first further term that compares masks; None: no further term does."""
        return next((name for name in self.further if TERMS[name].compares_masks), None)

    def graded(self, rollout: Rollout) -> Rollout:
        """The rollout whose text a published rule reads: with `strict`, the one final answer and nothing else."""
        if not self.config.strict:
            return rollout
        answer = final_answer(rollout.text)
        return replace(rollout, text="" if answer is None else f"<answer>{answer}</answer>")

    def think(self, rollout: Rollout) -> float:
        """The published `think`; with `strict`, the thinking must not be blank."""
        return reasons(rollout) if self.config.strict else think(rollout)

    async def score(
        self, rollout: Rollout, components: Mapping[str, float], segmenter: Any, **more: float
    ) -> dict[str, float]:
        """The reward's result, all floats.

        Returns:
            The entries of `more`; `score`, the weighted sum; every component and term by name, before its weight; the
            answer's flags.

        Raises:
            ConfigError, RowError, ImageError, SegmenterError: as `with_masks`.
        """
        rollout = await self.with_masks(rollout, segmenter)
        return {**more, **weigh(rollout, components, self.weights)}

    async def with_masks(self, rollout: Rollout, segmenter: Any) -> Rollout:
        """The rollout with masks where a further term compares masks; existing masks are kept.

        Raises:
            ConfigError, RowError, ImageError, SegmenterError: as `scoring.rollout.with_masks`.
        """
        if self.term_of_masks is None or rollout.masks is not None:
            return rollout
        return await with_masks(rollout, segmenter)


class ArgumentReader:
    """Reads the keyword arguments of one reward function.

    Args:
        weights: weights of the reward's own components, by name.
        caps: maximum number of points and objects of a usable answer, unless the recipe sets it.
        reads: keys of `samr1.reward` that the reward uses in addition to `terms` and `caps`.
        masks: whether the reward's own components compare masks.
    """

    def __init__(
        self, weights: Mapping[str, float], caps: Caps = CAPS, reads: Sequence[str] = (), masks: bool = False
    ) -> None:
        self._weights, self._caps, self._reads, self._masks = weights, caps, {"terms", "caps", *reads}, masks
        self.read = once_per_object(self._read)

    def __call__(self, reward: Any, segmenter: Any, verls_own: Mapping[str, Any]) -> Arguments:
        """The arguments of one call.

        Raises:
            ConfigError: a value of `reward` is invalid, a keyword argument is unknown, or the score needs a segmenter
                and none is given.
        """
        if unknown := sorted(set(verls_own) - set(VERLS_OWN)):
            raise ConfigError(
                "unknown_argument",
                f"reward_kwargs.{unknown[0]}",
                "no such keyword argument, expected segmenter and reward",
            )
        arguments = self.read(reward)
        if segmenter is None and arguments.compares_masks:
            user = "this reward" if arguments.own_masks else f"the term {arguments.term_of_masks}"
            raise ConfigError(
                "no_segmenter",
                "reward_kwargs.segmenter",
                f"missing, and {user} compares masks. Set it to ${{samr1.segmenter}} in the recipe",
            )
        return arguments

    def _read(self, reward: Any) -> Arguments:
        config = reward_config(reward)
        for key, value in config:
            if key not in self._reads and value is not None:
                raise ConfigError(
                    "key_not_read",
                    f"samr1.reward.{key}",
                    f"found {value!r}, but this reward reads {', '.join(sorted(self._reads))} only. Set "
                    f"samr1.reward.{key}=null",
                )
        known = [*self._weights, *TERMS]
        for name in config.weights:
            if name not in known:
                raise ConfigError(
                    "no_such_term",
                    f"samr1.reward.terms.{name}",
                    f"no such term, expected one of {', '.join(dict.fromkeys(known))}",
                )
        further = tuple(name for name in config.weights if name not in self._weights)
        weights = {**self._weights, **config.weights}
        return Arguments(weights, config.caps or self._caps, config, further, self._masks)
