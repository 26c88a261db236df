"""What a sample is worth: its pixels counted for both protocols, and whether its answer could be read."""

from __future__ import annotations

from pycocotools import mask as coco_mask

from samr1_verl.answers import has_think_format
from samr1_verl.masks import coco_rle
from samr1_verl.protocols import PROTOCOLS, PixelCounts
from samr1_verl.samples import Sample


def count_pixels(sample: Sample) -> PixelCounts:
    """Predicted against true mask, from their run lengths. Raises MaskError for one that does not decode."""
    assert sample.truth is not None
    predicted, truth = coco_rle(sample.mask, sample.size), coco_rle(sample.truth, sample.size)
    intersection = coco_mask.merge([predicted, truth], intersect=True)
    union = coco_mask.merge([predicted, truth])
    if sample.ignore is None:
        return PixelCounts(_area(intersection), _area(union))
    ignore = coco_rle(sample.ignore, sample.size)
    return PixelCounts(
        intersection=_area(intersection) - _common(intersection, ignore),
        union=_area(union) - _common(union, ignore),
        ignored=_area(ignore),
        ignored_predicted=_common(predicted, ignore),
    )


def judged(sample: Sample) -> Sample:
    """The sample with its `scores`: the pixel counts, `iou/<protocol>`, `format` (usable) and `think` (tags)."""
    counts = count_pixels(sample)
    scores = {
        "intersection": counts.intersection,
        "union": counts.union,
        "ignored": counts.ignored,
        "ignored_predicted": counts.ignored_predicted,
        "format": float(sample.reason is None),
        "think": float(has_think_format(sample.response)),
    }
    scores |= {f"iou/{protocol}": counts.iou(protocol) for protocol in PROTOCOLS}
    return sample.model_copy(update={"scores": {name: float(value) for name, value in scores.items()}})


def counts_in(sample: Sample) -> PixelCounts:
    """The pixel counts of a judged sample."""
    names = ("intersection", "union", "ignored", "ignored_predicted")
    return PixelCounts(*(sample.scores[name] for name in names))


def _area(rle: dict) -> int:
    return int(coco_mask.area(rle))


def _common(one: dict, other: dict) -> int:
    return _area(coco_mask.merge([one, other], intersect=True))
