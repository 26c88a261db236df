"""Figures of judged samples by every protocol, overall and per group, with confidence intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy import stats

from samr1_verl.evaluation.judge import counts_in
from samr1_verl.geometry import giou
from samr1_verl.geometry.giou import PROTOCOLS
from samr1_verl.geometry.masks import coco_rle
from samr1_verl.scoring.sample import Sample

CONFIDENCE, RESAMPLES = 0.95, 2000
SIZES = ("none", "small", "medium", "large")
_SMALL, _MEDIUM = 32**2, 96**2  # COCO's limits of area (pycocotools, Params.areaRng), in pixels of the original frame


def size_of(sample: Sample) -> str:
    """COCO's size class of the true mask: small below 32² pixels, medium below 96², else large; none: empty mask."""
    assert sample.truth is not None
    area = int(coco_mask.area(coco_rle(sample.truth, sample.size)))
    return "none" if area == 0 else "small" if area < _SMALL else "medium" if area < _MEDIUM else "large"


GROUPINGS: dict[str, Callable[[Sample], str]] = {
    "data_source": lambda sample: sample.data_source,
    "category": lambda sample: sample.category,
    "size": size_of,
}


def figures(samples: Sequence[Sample]) -> dict[str, Any]:
    """The figures of at least one judged sample.

    Returns:
        `rows` and `images` (counts), `format_rate` and `think_rate` (shares in [0, 1] of usable answers and of answers
        with think tags), and per protocol a mapping with the figures of `geometry.giou.figures`.
    """
    counts = [counts_in(sample) for sample in samples]
    result: dict[str, Any] = {
        "rows": len(samples),
        "images": len({sample.sha256 for sample in samples}),
        "format_rate": float(np.mean([sample.scores["format"] for sample in samples])),
        "think_rate": float(np.mean([sample.scores["think"] for sample in samples])),
    }
    return result | {name: giou.figures(counts, protocol) for name, protocol in PROTOCOLS.items()}


def reasons(samples: Sequence[Sample]) -> dict[str, int]:
    """Number of unusable answers per reason, the most frequent first."""
    counts = Counter(sample.reason for sample in samples if sample.reason is not None)
    return dict(counts.most_common())


def tables(samples: Sequence[Sample]) -> dict[str, dict[str, dict[str, Any]]]:
    """`figures` per grouping and group. The largest group is first; sizes are in the order of SIZES."""
    result = {}
    for grouping, group_of in GROUPINGS.items():
        groups = defaultdict(list)
        for sample in samples:
            groups[group_of(sample)].append(sample)
        names = sorted(groups, key=lambda name: (-len(groups[name]), name))
        if grouping == "size":
            names = [name for name in SIZES if name in groups]
        result[grouping] = {name: figures(groups[name]) for name in names}
    return result


def intervals(samples: Sequence[Sample], protocol: str, seed: int) -> dict[str, list[float] | None]:
    """95 % percentile bootstrap intervals [low, high] of `giou` and `ciou`; None: fewer than two images.

    Images are resampled, not sentences, because the results of the sentences about one image are correlated. Rows that
    the protocol leaves out count in no resample.
    """
    rules = PROTOCOLS[protocol]
    rated = [(sample, counts_in(sample)) for sample in samples]
    samples = [sample for sample, counts in rated if rules.iou(counts) is not None]
    counts = [counts for _, counts in rated if rules.iou(counts) is not None]
    number_of = {digest: number for number, digest in enumerate(dict.fromkeys(sample.sha256 for sample in samples))}
    image = np.array([number_of[sample.sha256] for sample in samples], dtype=np.int64)
    ious = np.array([rules.iou(sentence) for sentence in counts], dtype=np.float64)
    pixels = np.array([rules.counted(sentence) for sentence in counts], dtype=np.float64).reshape(-1, 2)
    images = len(number_of)
    sums = {"giou": (ious, np.ones_like(ious)), "ciou": (pixels[:, 0], pixels[:, 1])}
    return {
        name: _interval(np.bincount(image, numerators, images), np.bincount(image, denominators, images), seed)
        for name, (numerators, denominators) in sums.items()
    }


def _interval(numerators: np.ndarray, denominators: np.ndarray, seed: int) -> list[float] | None:
    """The interval of Σ numerators / Σ denominators over resampled images; a ratio with denominator 0 counts as 0.

    Args:
        numerators, denominators: [images] float64, sums per image.
    """
    if len(numerators) < 2:
        return None

    def ratio(numerator: np.ndarray, denominator: np.ndarray, axis: int) -> np.ndarray:
        total = denominator.sum(axis)
        return np.divide(numerator.sum(axis), total, out=np.zeros_like(total), where=total > 0)

    interval = stats.bootstrap(
        (numerators, denominators),
        ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(numerators)),  # number of resamples that are in memory at a time
        confidence_level=CONFIDENCE,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]
