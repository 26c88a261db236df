"""What a sample is worth: its pixels counted for both protocols, and whether its answer could be read."""

from __future__ import annotations

from dataclasses import asdict

from samr1_verl.answers import has_think_format
from samr1_verl.geometry.giou import PROTOCOLS, PixelCounts
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.scoring.sample import Sample


def count_pixels(sample: Sample) -> PixelCounts:
    """Predicted against true mask, without the ignored pixels. Raises MaskError for one that does not decode."""
    assert sample.truth is not None
    ignore = None if sample.ignore is None else decode_rle(sample.ignore, sample.size)
    return PixelCounts.of(decode_rle(sample.mask, sample.size), decode_rle(sample.truth, sample.size), ignore)


def judged(sample: Sample) -> Sample:
    """The sample with its `scores`: the pixel counts, `iou/<protocol>`, `format` (usable) and `think` (tags)."""
    counts = count_pixels(sample)
    scores = asdict(counts) | {f"iou/{protocol}": counts.iou(protocol) for protocol in PROTOCOLS}
    scores |= {"format": sample.reason is None, "think": has_think_format(sample.response)}
    return sample.model_copy(update={"scores": {name: float(value) for name, value in scores.items()}})


def counts_in(sample: Sample) -> PixelCounts:
    """The pixel counts of a judged sample."""
    counts = PixelCounts.in_scores(sample.scores)
    assert counts is not None
    return counts
