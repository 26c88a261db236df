"""Drawing of masks, boxes and points on an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from samr1_verl.geometry.frames import boxes_to_policy, points_to_policy
from samr1_verl.geometry.prompt import Point

Colour = tuple[int, int, int]
COLOURS: list[Colour] = [(230, 60, 60), (40, 120, 240), (40, 170, 80), (240, 170, 20), (160, 70, 200), (20, 180, 190)]
_PLAIN = 500  # longer side in pixels up to which lines are 2 pixels wide; larger pictures get wider lines


def draw(
    shown: Image.Image,
    original_wh: tuple[int, int],
    masks: Iterable[tuple[np.ndarray, Colour]] = (),
    boxes: Iterable[tuple[Sequence[float], Colour]] = (),
    points: Iterable[tuple[Point, int]] = (),
) -> None:
    """Draw onto an RGB image, in place. Masks, boxes and points are in the original frame.

    Args:
        shown: the image, at any size; changed by this function.
        original_wh: (W, H) of the original image.
        masks: pairs of a mask, HxW bool, and a colour: drawn as a light tint with a line around it.
        boxes: pairs of a box, x1 y1 x2 y2, and a colour.
        points: pairs of a point, (x, y), and a label: 1 (on the object) is white, 0 is black.
    """
    scale = max(1, round(max(shown.size) / _PLAIN))
    for mask, colour in masks:
        small = np.asarray(Image.fromarray(mask).resize(shown.size, Image.Resampling.NEAREST))
        edge = small & ~ndimage.binary_erosion(small, iterations=2 * scale)
        stencil = Image.fromarray(np.where(edge, 255, np.where(small, 60, 0)).astype(np.uint8))
        shown.paste(Image.new("RGB", shown.size, colour), mask=stencil)
    pen = ImageDraw.Draw(shown)
    for box, colour in boxes:
        corners = boxes_to_policy(np.array(box), original_wh, shown.size, "absolute").tolist()
        pen.rectangle(corners, outline=colour, width=2 * scale)
    for point, label in points:
        x, y = points_to_policy(np.array(point), original_wh, shown.size, "absolute")
        inside, rim = ("white", "black") if label else ("black", "white")
        pen.ellipse((x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale), inside, rim, scale)
