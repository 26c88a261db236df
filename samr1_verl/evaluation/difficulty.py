"""How hard each row of a file is for a policy: how often its sampled answers succeed, and how often a group can teach.

A group whose rewards are all equal has no gradient: its advantages are 0 (GRPO, arXiv 2402.03300, section 4.1.2; DAPO,
arXiv 2503.14476, section 3.2, draws other groups instead).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from samr1_verl.config import ConfigError
from samr1_verl.evaluation.figures import reasons
from samr1_verl.evaluation.judge import answered
from samr1_verl.evaluation.poll import REWARD
from samr1_verl.policies.base import PolicyError
from samr1_verl.rows.record import DataError
from samr1_verl.scoring.sample import Sample

SUCCESS = 0.5  # the mask IoU above which an answer counts for the column success_rate
# ReLA's rule is that of the rewards' `acc`: pixels that do not count are left out, and on a row without an object `[]`
# alone is right. LISA's rule would also count an empty mask of a wrong answer there.
IOU = "iou/rela"


@dataclass(frozen=True, eq=False)
class Difficulty:
    """Measured values of the first rows of a file, in their order."""

    success: Mapping[float, np.ndarray]  # by mask IoU: [rows] float64, the share of a row's answers above it
    gradient_chance: np.ndarray  # [rows] float64, the chance that the rewards of a group of answers differ
    sources: Sequence[str]  # data source of each row
    samples: int  # number of answers a row
    group: int  # number of answers of a group

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns of the data file."""
        return {"success_rate": self.success_rate, "gradient_chance": self.gradient_chance}

    @property
    def success_rate(self) -> np.ndarray:
        """[rows] float64: the share of a row's answers with a mask IoU above SUCCESS."""
        return self.success[SUCCESS]

    def within(self, low: float, high: float) -> np.ndarray:
        """[rows] bool: the rows whose success rate lies within the bounds, ends included.

        Raises:
            DataError: no row does; the message has the range of the values.
        """
        rate = self.success_rate
        keep = (rate >= low) & (rate <= high)
        if not keep.any():
            raise DataError(
                "no_row_left",
                f"--keep {low:g}..{high:g}",
                f"no row is left: the success rates of {len(rate)} rows are {rate.min():.3g} to {rate.max():.3g}. Set "
                "wider bounds: the answers are stored, so nobody is asked again",
            )
        return keep


def parse_bounds(text: str) -> tuple[float, float]:
    """Lowest and highest success rate of a row that is kept, from LOW..HIGH. Raises ConfigError."""
    try:
        low, high = map(float, text.split(".."))
        if 0 <= low <= high <= 1:
            return low, high
    except ValueError:
        pass
    raise ConfigError(
        "bad_bounds", "--keep", f"found {text!r}, expected LOW..HIGH with 0 <= LOW <= HIGH <= 1, such as 0.1..0.9"
    )


def gradient_chance(rewards: Sequence[float], group: int) -> float:
    """The chance that the rewards of a group of answers are not all equal, in [0, 1].

    It is the share of the groups of different answers among those given that have two rewards, which estimates the
    chance of a new group without bias: 1 - Σ_r C(k_r, n) / C(N, n), with k_r answers of reward r among N answers.

    Args:
        rewards: of N independent answers to one row.
        group: n, from 1 to N.
    """
    assert 1 <= group <= len(rewards), f"expected 1 to {len(rewards)} answers a group, found {group}"
    equal = sum(comb(count, group) for count in Counter(rewards).values())
    return 1 - equal / comb(len(rewards), group)


def measure(rows: Sequence[Sequence[Sample]], tiers: Sequence[float], group: int) -> Difficulty:
    """The difficulty of rows.

    Args:
        rows: judged answers with `REWARD` among their scores, equally many a row.
        tiers: mask IoUs, to which SUCCESS is added.
        group: number of answers of a group.

    Raises:
        PolicyError: no answer is usable.
    """
    answers = [answer for row in rows for answer in row]
    if all(answered(answer) == "unusable" for answer in answers):
        reason, count = next(iter(reasons(answers).items()))
        example = next(answer.response for answer in answers if answer.reason == reason)
        raise PolicyError(
            "no_usable_answer",
            "the policy",
            f"none of the {len(answers)} answers is usable: {count} for the reason {reason}, such as "
            f"{example[:200]!r}. Check that --recipe or samr1.prompt asks as in the policy's training, and look at an "
            "answer with samr1 predict",
        )
    iou = np.array([[answer.scores[IOU] for answer in row] for row in rows])
    return Difficulty(
        success={tier: (iou > tier).mean(axis=1) for tier in sorted({SUCCESS, *tiers})},
        gradient_chance=np.array([gradient_chance([answer.scores[REWARD] for answer in row], group) for row in rows]),
        sources=[row[0].data_source for row in rows],
        samples=len(rows[0]),
        group=group,
    )


def results_of(found: Difficulty, answers: Sequence[Sample], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json.

    Its keys: `rows`, `samples` and `group` (counts); `success_rate`, `gradient_chance` and `mean_reward`, means over
    the rows; `tiers`, by mask IoU the mean `success_rate` and the shares of rows in which no answer (`never`), some
    (`sometimes`) or every answer (`always`) succeeds; `format_rate` and `unusable`, as those of samr1 eval, over all
    answers; `settings`.
    """
    return {
        "rows": len(found.sources),
        "samples": found.samples,
        "group": found.group,
        "success_rate": float(found.success_rate.mean()),
        "gradient_chance": float(found.gradient_chance.mean()),
        "mean_reward": float(np.mean([answer.scores[REWARD] for answer in answers])),
        "tiers": {f"{tier:g}": _shares(rate) for tier, rate in found.success.items()},
        "format_rate": float(np.mean([answer.scores["format"] for answer in answers])),
        "unusable": reasons(answers),
        "settings": dict(settings),
    }


def _shares(rate: np.ndarray) -> dict[str, float]:
    never, always = float((rate == 0).mean()), float((rate == 1).mean())
    sometimes = float(((rate > 0) & (rate < 1)).mean())
    return {"success_rate": float(rate.mean()), "never": never, "sometimes": sometimes, "always": always}


def kept_of(found: Difficulty, bounds: tuple[float, float], keep: np.ndarray) -> dict[str, Any]:
    """The key `kept` of results.json.

    Its keys: `low` and `high`; `rows`, the number of rows that are kept, and their mean `gradient_chance`; `sources`,
    by data source the number of rows that are `kept`, too hard (`below` the bounds) and too easy (`above` them).
    """
    low, high = bounds
    sources: dict[str, dict[str, int]] = defaultdict(lambda: {"kept": 0, "below": 0, "above": 0})
    for source, rate, stays in zip(found.sources, found.success_rate, keep, strict=True):
        sources[source]["kept" if stays else "below" if rate < low else "above"] += 1
    chance = float(found.gradient_chance[keep].mean())
    return {"low": low, "high": high, "rows": int(keep.sum()), "gradient_chance": chance, "sources": dict(sources)}
