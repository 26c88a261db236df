"""Scores of one sample: pixel counts, the IoU by every protocol, whether the answer is usable and has think tags."""

from __future__ import annotations

from samr1_verl.answers import Reason, has_think_format
from samr1_verl.geometry.giou import PROTOCOLS, Answered, PixelCounts
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.scoring.sample import Sample


def count_pixels(sample: Sample) -> PixelCounts:
    """The pixel counts of the predicted against the true mask. Raises MaskError where a mask does not decode."""
    assert sample.truth is not None
    ignore = None if sample.ignore is None else decode_rle(sample.ignore, sample.size)
    predicted, truth = decode_rle(sample.mask, sample.size), decode_rle(sample.truth, sample.size)
    return PixelCounts.of(predicted, truth, ignore, answered(sample))


def answered(sample: Sample) -> Answered:
    """The state of the sample's answer, which decides on rows without a target."""
    if sample.reason is None:
        return "objects"
    return "nothing" if sample.reason == Reason.NO_TARGET.value else "unusable"


def judged(sample: Sample) -> Sample:
    """The sample with `scores`, all floats.

    Its keys: the counts of PixelCounts; `iou/<protocol>` in [0, 1], missing where the protocol leaves the row out;
    `format` (1: the answer is usable) and `think` (1: it has think tags). Raises MaskError as `count_pixels`.
    """
    counts = count_pixels(sample)
    ious = {f"iou/{name}": protocol.iou(counts) for name, protocol in PROTOCOLS.items()}
    scores = counts.scores() | {name: iou for name, iou in ious.items() if iou is not None}
    scores |= {"format": float(sample.reason is None), "think": float(has_think_format(sample.response))}
    return sample.model_copy(update={"scores": scores})


def counts_in(sample: Sample) -> PixelCounts:
    """The pixel counts of a judged sample. A sample without the count of the truth (version 0.1) is counted again."""
    counts = PixelCounts.in_scores(sample.scores, answered(sample))
    return counts if counts is not None and counts.truth is not None else count_pixels(sample)
