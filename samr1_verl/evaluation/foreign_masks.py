"""A mask of somebody else's file as run lengths of its row's size. The size is checked before anything is expanded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samr1_verl.geometry.images import ImageError, ImageFile
from samr1_verl.geometry.masks import MaskError, rle_runs
from samr1_verl.rows.convert.names import short
from samr1_verl.rows.record import MAX_PIXELS, DataError


def runs_of_rle(rle: Any, size: tuple[int, int], place: str) -> np.ndarray:
    """The run lengths, as `geometry.masks.rle_runs` gives them, of a COCO RLE: {"size": [H, W], "counts": …}.

    Args:
        rle: counts are compressed text, or a list of run lengths.
        size: (H, W) of the row's image.
        place: file and position, for messages.

    Raises:
        DataError: it is no RLE, has another size, or does not decode.
    """
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        kind = "a list, as polygons are" if isinstance(rle, list) else short(rle)
        raise DataError(
            "no_coco_rle",
            place,
            f'the mask is {kind}, expected COCO RLE: {{"size": [H, W], "counts": …}}. Write it with '
            "pycocotools.mask.encode, counts decoded as ASCII",
        )
    if rle["size"] != list(size):
        raise DataError(
            "size_differs", place, f"the mask's size is {short(rle['size'])}, the row's image has {list(size)} (H, W)"
        )
    counts = rle["counts"]
    try:
        if isinstance(counts, str):
            return rle_runs(counts, size)
        return _checked_list(counts, size)
    except MaskError as error:
        raise DataError(
            "undecodable_rle", place, f"{error}. Write the mask again with pycocotools.mask.encode"
        ) from error


def _checked_list(counts: Any, size: tuple[int, int]) -> np.ndarray:
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise MaskError(
            "no_run_lengths", "RLE counts", f"found {short(counts)}, expected text or a list of run lengths, from 0"
        )
    if sum(counts) != size[0] * size[1]:
        raise MaskError(
            "pixels_differ",
            "RLE",
            f"describes {sum(counts)} pixels, the image has {size[0]}x{size[1]} = {size[0] * size[1]}",
        )
    return np.array(counts, dtype=np.int64)


def mask_of_png(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The mask, HxW bool, of a PNG file with one channel: 0 outside, and 255 (or 1) on the object.

    Args:
        size: (H, W) of the row's image.

    Raises:
        DataError: it is no PNG, has another size, several channels or several pictures, or holds other values.
    """
    try:
        with ImageFile.read(path).opened(MAX_PIXELS) as image:
            if (fault := _unfit(image, size, path)) is None:
                values = np.asarray(image).astype(np.uint8)  # mode 1: 0 and 1
    except ImageError as error:
        raise DataError(
            "unreadable_png", f"{path}", f"no readable PNG file ({error.__cause__ or error}). Save the mask again"
        ) from error
    if fault is not None:
        raise fault
    found = np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
    if found not in ([0], [1], [255], [0, 1], [0, 255]):
        raise DataError(
            "wrong_pixel_values",
            f"{path}",
            f"its pixels have the values {short(found)}, expected 0 outside and 255 (or 1) on the object. A row's "
            "objects belong in one mask; save it without smoothing",
        )
    return values > 0


def _unfit(image: Image.Image, size: tuple[int, int], path: Path) -> DataError | None:
    """The reason why an image is no mask of `size` (H, W), by its header alone; None: it may be one."""
    if image.format != "PNG" or getattr(image, "is_animated", False):
        return DataError(
            "no_single_png",
            f"{path}",
            f"it is {image.format} or has several pictures, expected PNG with one. Save the mask as PNG",
        )
    if image.size != size[::-1]:
        return DataError(
            "size_differs",
            f"{path}",
            f"the mask is {image.height}x{image.width} (HxW), the row's image is {size[0]}x{size[1]}. Save the mask in "
            "the size of the original image",
        )
    if image.mode not in ("1", "L"):
        return DataError(
            "wrong_pixel_mode",
            f"{path}",
            f"its pixels have Pillow's mode {image.mode}, expected one channel of 1 or 8 bits (1 or L). Save the mask "
            "in grey: 0 outside, 255 on the object",
        )
    return None
