"""A sample's answer as a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from samr1_verl.geometry.drawing import COLOURS, draw
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.scoring.sample import Sample


def overlay(sample: Sample, image: Image.Image) -> Image.Image:
    """A copy of the image with the answer's mask, boxes and points; an unusable answer has none of them.

    Args:
        image: RGB, at the original or any other size.
    """
    shown = image.copy()
    draw(
        shown,
        sample.size[::-1],
        masks=[(decode_rle(sample.mask, sample.size), COLOURS[0])],
        boxes=[(shape.box, COLOURS[1]) for shape in sample.shapes if shape.box is not None],
        points=[pair for shape in sample.shapes for pair in zip(shape.points, shape.labels, strict=True)],
    )
    return shown


def mask_image(sample: Sample) -> Image.Image:
    """The answer's mask as a grey image of the original size: 255 on the object, 0 elsewhere."""
    return Image.fromarray(decode_rle(sample.mask, sample.size).astype(np.uint8) * 255)
