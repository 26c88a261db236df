"""From judged samples to what is published: gIoU and cIoU by both protocols, groups of rows, confidence intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy import stats

from samr1_verl.evaluation.judge import counts_in
from samr1_verl.geometry.giou import PROTOCOLS, EvalProtocol, giou_ciou
from samr1_verl.geometry.masks import coco_rle
from samr1_verl.scoring.sample import Sample

CONFIDENCE, RESAMPLES = 0.95, 2000
SIZES = ("none", "small", "medium", "large")
_SMALL, _MEDIUM = 32**2, 96**2  # COCO's limits of area, pixels of the original image


def size_of(sample: Sample) -> str:
    """COCO's size class of the true mask: below 32², below 96² pixels, or more; `none` where it is empty."""
    assert sample.truth is not None
    area = int(coco_mask.area(coco_rle(sample.truth, sample.size)))
    return "none" if area == 0 else "small" if area < _SMALL else "medium" if area < _MEDIUM else "large"


GROUPINGS: dict[str, Callable[[Sample], str]] = {
    "data_source": lambda sample: sample.data_source,
    "category": lambda sample: sample.category,
    "size": size_of,
}


def figures(samples: Sequence[Sample]) -> dict[str, Any]:
    """Of at least one sample: `rows`, `images`, `format_rate`, `think_rate`, and each protocol's `giou`, `ciou`."""
    counts = [counts_in(sample) for sample in samples]
    found: dict[str, Any] = {
        "rows": len(samples),
        "images": len({sample.sha256 for sample in samples}),
        "format_rate": float(np.mean([sample.scores["format"] for sample in samples])),
        "think_rate": float(np.mean([sample.scores["think"] for sample in samples])),
    }
    for protocol in PROTOCOLS:
        giou, ciou = giou_ciou(counts, protocol)
        found[protocol] = {"giou": giou, "ciou": ciou}
    return found


def reasons(samples: Sequence[Sample]) -> dict[str, int]:
    """Unusable answers by reason, the most frequent first."""
    found = Counter(sample.reason for sample in samples if sample.reason is not None)
    return dict(found.most_common())


def tables(samples: Sequence[Sample]) -> dict[str, dict[str, dict[str, Any]]]:
    """`figures` of each group of rows, by grouping and group: large groups first, sizes in order."""
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


def intervals(samples: Sequence[Sample], protocol: EvalProtocol, seed: int) -> dict[str, list[float] | None]:
    """95 % percentile bootstrap intervals [low, high] of `giou` and `ciou`; None below two images.

    Images are resampled, not sentences: the sentences about one image stand or fall together.
    """
    image_of = {digest: at for at, digest in enumerate(dict.fromkeys(sample.sha256 for sample in samples))}
    at = np.array([image_of[sample.sha256] for sample in samples])
    counts = [counts_in(sample) for sample in samples]
    ious = np.array([one.iou(protocol) for one in counts])
    pixels = np.array([one.counted(protocol) for one in counts], dtype=np.float64)
    images = len(image_of)
    sums = {"giou": (ious, np.ones_like(ious)), "ciou": (pixels[:, 0], pixels[:, 1])}
    return {
        name: _interval(np.bincount(at, parts, images), np.bincount(at, wholes, images), seed)
        for name, (parts, wholes) in sums.items()
    }


def _interval(parts: np.ndarray, wholes: np.ndarray, seed: int) -> list[float] | None:
    """Of Σ parts / Σ wholes over resampled images, each [images] float64; 0 where a resample's wholes are 0."""
    if len(parts) < 2:
        return None

    def ratio(part: np.ndarray, whole: np.ndarray, axis: int) -> np.ndarray:
        total = whole.sum(axis)
        return np.divide(part.sum(axis), total, out=np.zeros_like(total), where=total > 0)

    found = stats.bootstrap(
        (parts, wholes),
        ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(parts)),  # resamples in memory together
        confidence_level=CONFIDENCE,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return [float(found.low), float(found.high)]
