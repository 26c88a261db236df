"""The difference of two evaluations of the same rows: interval, test, and the rows that changed most.

Per figure, gIoU and cIoU:

    interval    99 % percentile bootstrap over images, both policies resampled together
    p           test by exchange: where the policies are equal, the answers about an image may change sides. p is the
                share of random exchanges with a difference at least as large, in either direction
    found       the interval leaves out 0, and p is at most 1 %

The exchange test keeps its level at every number of images. A percentile interval alone is too narrow for few images,
and for cIoU, in which few large objects decide. Of equal policies, at most 1 % of the comparisons find a difference in
gIoU, at most 1 % in cIoU, and so at most 2 % in either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from samr1_verl.evaluation.judge import counts_in
from samr1_verl.geometry.giou import PROTOCOLS, EvalProtocol, giou_ciou
from samr1_verl.scoring.sample import Sample

LEVEL, RESAMPLES = 0.01, 4999
_IN_MEMORY = 2_000_000  # number of values of all resamples that are in memory at a time


class Sums(NamedTuple):
    """A figure of one policy as Σ numerator / Σ denominator over images; 0 where the denominator is 0.

    Both are [images], float64. gIoU: sum of IoUs and number of sentences. cIoU: intersections and unions in pixels.
    """

    numerator: np.ndarray
    denominator: np.ndarray

    def ratio(self, images: np.ndarray | slice, axis: int = -1) -> np.ndarray:
        """The figure over the chosen images. `images`: positions, of any shape; the sum is along `axis`."""
        numerator, denominator = self.numerator[images].sum(axis), self.denominator[images].sum(axis)
        return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


@dataclass(frozen=True)
class Difference:
    """A figure of two policies. `interval` and `p` are None for fewer than two images."""

    a: float
    b: float
    difference: float  # b minus a
    interval: tuple[float, float] | None
    p: float | None
    found: bool


def difference(a: Sums, b: Sums, seed: int, resamples: int = RESAMPLES) -> Difference:
    """The difference of one figure of two policies, with its interval and its test.

    Args:
        a, b: sums over the same images, in the same order.
        seed: seed of resamples and exchanges.
        resamples: number of each.
    """
    images = len(a.numerator)
    value_a, value_b = float(a.ratio(slice(None))), float(b.ratio(slice(None)))
    if images < 2:
        return Difference(value_a, value_b, value_b - value_a, None, None, False)
    options: dict[str, Any] = {
        "n_resamples": resamples,
        "batch": max(1, _IN_MEMORY // images),
        "vectorized": True,
    }
    limits = stats.bootstrap(
        (np.arange(images),),
        lambda chosen, axis: b.ratio(chosen, axis) - a.ratio(chosen, axis),
        method="percentile",
        confidence_level=1 - LEVEL,
        random_state=np.random.default_rng(seed),
        **options,
    ).confidence_interval
    interval = float(limits.low), float(limits.high)
    both = Sums(*(np.concatenate(parts) for parts in zip(a, b, strict=True)))
    p = stats.permutation_test(
        (np.arange(images), np.arange(images, 2 * images)),
        lambda first, second, axis: both.ratio(second, axis) - both.ratio(first, axis),
        permutation_type="samples",
        random_state=np.random.default_rng(seed),
        **options,
    ).pvalue
    found = bool(p <= LEVEL and not interval[0] <= 0 <= interval[1])
    return Difference(value_a, value_b, value_b - value_a, interval, float(p), found)


def compare(pairs: Sequence[tuple[Sample, Sample]], protocol: str, seed: int, rows: int) -> dict[str, Any]:
    """The comparison of policy B with policy A, in JSON values. Every difference is B minus A.

    Args:
        pairs: judged samples of the same rows, as `pairs.read_pairs` returns them.
        protocol: name of one of PROTOCOLS.
        seed: seed of resamples and exchanges.
        rows: maximum number of rows in `changed`.

    Returns:
        `protocol`, `rows`, `images`; `giou` and `ciou` with the fields of Difference; `better`, `worse` and `alike`
        (numbers of rows whose IoU rose, fell, stayed or is left out by the protocol); `test` (how the difference was
        tested); `changed` (the rows whose IoU changed most: `row`, `data_source`, `sentence`, `image`, IoUs `a` and
        `b`, `change`, reasons of unusable answers `reason_a` and `reason_b`).
    """
    rules = PROTOCOLS[protocol]
    sums = [sums_of([pair[side] for pair in pairs], rules) for side in (0, 1)]
    figures = {name: asdict(difference(sums[0][name], sums[1][name], seed)) for name in ("giou", "ciou")}
    for side, letter in enumerate("ab"):  # of eval's own arithmetic: equal to its results to the last digit
        exact = giou_ciou([counts_in(pair[side]) for pair in pairs], rules)
        for name, figure in figures.items():
            figure[letter] = exact.get(name, 0.0)  # missing: the protocol leaves out all rows
    for figure in figures.values():
        figure["difference"] = figure["b"] - figure["a"]
    changes = [_change(a, b, rules) for a, b in pairs]
    moved = sorted((change for change in changes if change["change"]), key=lambda change: -abs(change["change"]))
    return {
        "protocol": protocol,
        "rows": len(pairs),
        "images": len(sums[0]["giou"].numerator),
        **figures,
        "better": sum(change["change"] > 0 for change in moved),
        "worse": sum(change["change"] < 0 for change in moved),
        "alike": len(changes) - len(moved),
        "test": {"over": "images", "level": LEVEL, "resamples": RESAMPLES, "seed": seed},
        "changed": moved[:rows],
    }


def sums_of(samples: Sequence[Sample], rules: EvalProtocol) -> dict[str, Sums]:
    """The sums of `giou` and `ciou` per image, in the order in which the images come first.

    A row that the protocol leaves out adds nothing to them.
    """
    number_of = {digest: number for number, digest in enumerate(dict.fromkeys(sample.sha256 for sample in samples))}
    image = np.array([number_of[sample.sha256] for sample in samples])
    counts = [counts_in(sample) for sample in samples]
    ious = [rules.iou(sentence) for sentence in counts]
    kept = np.array([iou is not None for iou in ious])
    pixels = np.array([rules.counted(sentence) for sentence in counts], dtype=np.float64) * kept[:, None]
    columns = {
        "giou": (np.array([iou or 0.0 for iou in ious]), kept.astype(np.float64)),
        "ciou": (pixels[:, 0], pixels[:, 1]),
    }
    return {
        name: Sums(*(np.bincount(image, column, len(number_of)) for column in both)) for name, both in columns.items()
    }


def _change(a: Sample, b: Sample, rules: EvalProtocol) -> dict[str, Any]:
    before, after = (rules.iou(counts_in(sample)) for sample in (a, b))
    return {
        "row": a.index,
        "data_source": a.data_source,
        "sentence": a.sentence,
        "image": a.image,
        "a": before,
        "b": after,
        "change": 0.0 if before is None or after is None else after - before,
        "reason_a": a.reason,
        "reason_b": b.reason,
    }
