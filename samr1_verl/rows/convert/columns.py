"""Values in the columns of a Hugging Face data set, read as masks, polygons and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samr1_verl.geometry.images import ImageFile
from samr1_verl.rows.convert.json_files import parse_json
from samr1_verl.rows.convert.names import Flaw, path_below, short
from samr1_verl.rows.convert.options import BoxFormat


def file_of(path: Any, images: Path | None) -> Path:
    """The file that a data set names. Raises Flaw where it lies outside the folder `images`, or there is none."""
    if images is None:
        raise Flaw(
            "path_without_folder",
            "image",
            f"the data set holds no image but the path {short(path)}, and a data set of the hub names no folder of "
            "this machine. Name the folder of its images with --images",
        )
    return path_below(images, path)


def label_image(mask: Any, images: Path | None) -> np.ndarray:
    """The labels in a mask column, HxW of any number type. `mask` is an encoded image or rows of numbers.

    `images` is the folder that a path in the column may not leave; None: no paths.

    Raises:
        Flaw: it cannot be read, or has several channels that differ.
    """
    try:
        if isinstance(mask, dict) and (mask.get("bytes") or mask.get("path")):
            file = (
                ImageFile("the mask", mask["bytes"])
                if mask.get("bytes")
                else ImageFile.read(file_of(mask["path"], images))
            )
            with file.opened() as image:
                labels = np.asarray(image)
        else:
            labels = np.asarray(mask)
            labels = labels if labels.dtype.kind in "biuf" else np.empty(0)
    except Flaw as flaw:
        raise Flaw("unusable_path", "mask", flaw.problem) from flaw
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise Flaw("unreadable_mask", "mask", f"unreadable ({error}), expected an image or rows of pixels") from error
    if labels.ndim == 3 and labels.shape[2] > 1 and (labels[..., :3] == labels[..., :1]).all():
        labels = labels[..., 0]  # grey, saved as colours
    if labels.ndim != 2:
        raise Flaw(
            "wrong_shape", "mask", f"its shape is {labels.shape}, expected HxW: one channel, or three that are equal"
        )
    return labels


def split_labels(labels: np.ndarray, ignore_value: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The object's pixels and the pixels that do not count, both HxW bool.

    Args:
        labels: HxW, 0 where there is no object.
        ignore_value: label of the pixels that do not count, or None.

    Raises:
        Flaw: the labels hold no object, or more than one further value.
    """
    values = [value for value in np.unique(labels).tolist() if value not in (0, ignore_value)]
    if len(values) > 1:
        raise Flaw(
            "several_labels",
            "mask",
            f"it holds the values {[0, *values][:8]}, expected 0 and one other. If one marks pixels that do not count "
            "(255 often does), use --ignore-value; if each is an object, split them into examples",
        )
    if not values:
        raise Flaw("empty_mask", "mask", "no pixel belongs to the object")
    ignore = labels == ignore_value if ignore_value is not None else np.zeros(labels.shape, dtype=bool)
    return labels == values[0], ignore


def several_segmentations(segmentation: Any) -> Sequence[Any]:
    """The segmentation of each object: `segmentation` is a list of RLEs or of lists of polygons, else one object's.

    Raises:
        Flaw: it is text that is not JSON.
    """
    if isinstance(segmentation, str):
        try:
            segmentation = parse_json(segmentation)
        except ValueError as error:
            raise Flaw("segmentation_not_json", "segmentation", f"text that is not JSON ({error})") from error
    if isinstance(segmentation, list) and segmentation:
        first = segmentation[0]
        if isinstance(first, dict) or (isinstance(first, list) and first and isinstance(first[0], list)):
            return segmentation
    return [segmentation]


def several_boxes(box: Any) -> Sequence[Any]:
    """The box of each object: `box` is a list of boxes, else one object's."""
    return box if isinstance(box, list) and box and isinstance(box[0], list) else [box]


def box_xyxy(box: Any, box_format: BoxFormat) -> list[float]:
    """A box as [x1, y1, x2, y2], in the pixels it was given in. Raises Flaw where it does not hold four numbers."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(isinstance(edge, int | float) for edge in box):
        raise Flaw("bad_box", "box", f"found {short(box)}, expected four numbers")
    x, y, right, bottom = box
    if not all(abs(edge) < 1 << 31 for edge in box):  # also true of no number
        raise Flaw("box_out_of_range", "box", f"found {short(box)}, expected pixels")
    return [x, y, right, bottom] if box_format is BoxFormat.xyxy else [x, y, x + right, y + bottom]
