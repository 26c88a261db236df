"""The number of prompts that a step draws when groups without a gradient are replaced (`algorithm.filter_groups`)."""

from __future__ import annotations

import math

from samr1_verl.training.rollout_metrics import EqualGroups


class Draws:
    """Counts the prompts that are drawn for one step, and limits them.

    Args:
        batch: prompts per step.
        max_batches: maximum number of drawn prompts, in units of `batch`; 0: no maximum.
    """

    def __init__(self, batch: int, max_batches: int) -> None:
        self._batch, self._max = batch, max_batches * batch if max_batches > 0 else math.inf
        self.start()

    def start(self) -> None:
        """Begin a step, for which one batch of prompts has been drawn."""
        self._drawn, self._replaced, self._failed = self._batch, 0, 0
        self._discarded, self._tokens = EqualGroups(), 0

    def draw(self, prompts: int) -> int:
        """The number of prompts, at most `prompts`, that may be drawn in addition; they count as drawn."""
        allowed = int(min(prompts, self._max + self._failed - self._drawn))
        self._drawn += allowed
        return allowed

    def replace(self, groups: int) -> int:
        """The number of groups, at most `groups`, that may be replaced, so that the others still fill the batch."""
        allowed = int(min(groups, self._max - self._batch - self._replaced))
        self._replaced += allowed
        return allowed

    def fail(self, groups: int) -> None:
        """Count groups without a finished rollout, which are always replaced."""
        self._failed += groups

    def discard(self, groups: EqualGroups, tokens: int) -> None:
        """Count groups that are replaced because their rewards are equal, and their response tokens."""
        self._discarded += groups
        self._tokens += tokens

    def metrics(self, used: EqualGroups, count: int) -> dict[str, float]:
        """The metrics of the step: of all groups that were drawn, and of those that were replaced.

        Args:
            used: the groups with equal rewards of the batch. count: number of its groups.
        """
        equal = self._discarded + used
        return {
            "critic/groups/drawn": float(self._drawn),
            "critic/groups/drawn_zero_advantage_frac": equal.count / self._drawn,
            "critic/groups/drawn_low_frac": equal.low / self._drawn,
            "critic/groups/drawn_high_frac": equal.high / self._drawn,
            "critic/groups/useful": float(count - used.count),
            "critic/groups/replaced_tokens": float(self._tokens),
        }
