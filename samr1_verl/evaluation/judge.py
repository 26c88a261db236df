"""Scores of one sample: pixel counts for both protocols, and whether the answer is usable and has think tags."""

from __future__ import annotations

from dataclasses import asdict

from samr1_verl.answers import has_think_format
from samr1_verl.geometry.giou import PROTOCOLS, PixelCounts
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.scoring.sample import Sample


def count_pixels(sample: Sample) -> PixelCounts:
    """The pixel counts of the predicted against the true mask. Raises MaskError where a mask does not decode."""
    assert sample.truth is not None
    ignore = None if sample.ignore is None else decode_rle(sample.ignore, sample.size)
    return PixelCounts.of(decode_rle(sample.mask, sample.size), decode_rle(sample.truth, sample.size), ignore)


def judged(sample: Sample) -> Sample:
    """The sample with `scores`, all floats.

    Its keys: the fields of PixelCounts, `iou/<protocol>` in [0, 1], `format` (1: the answer is usable) and `think` (1:
    it has think tags). Raises MaskError as `count_pixels`.
    """
    counts = count_pixels(sample)
    scores = asdict(counts) | {f"iou/{protocol}": counts.iou(protocol) for protocol in PROTOCOLS}
    scores |= {"format": sample.reason is None, "think": has_think_format(sample.response)}
    return sample.model_copy(update={"scores": {name: float(value) for name, value in scores.items()}})


def counts_in(sample: Sample) -> PixelCounts:
    """The pixel counts of a judged sample."""
    counts = PixelCounts.in_scores(sample.scores)
    assert counts is not None
    return counts
