"""Coordinates between the original image, the image the policy saw, and SAM: the only module that scales anything.

Frames:
    original: pixels of the image file after its EXIF orientation is applied. Masks and IoU live here.
    policy: what the policy reads and writes. `absolute` (Qwen2.5-VL): pixels of the resized image;
        `thousand` (Qwen3-VL): 0 to 1000 over the image's width and height.

Coordinates are continuous: pixel (column i, row j) covers [i, i+1) x [j, j+1). A resize is then a plain multiplication,
and the frames agree at the image's borders.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Frame = Literal["absolute", "thousand"]
THOUSAND = 1000.0


class ImageError(ValueError):
    """An image file that is missing, is no image, or is not the one the row was made from."""


def _extent(policy_wh: tuple[int, int], frame: Frame) -> np.ndarray:
    """Width and height of the whole image in the policy frame, shape [2], float64."""
    if frame == "absolute":
        return np.asarray(policy_wh, dtype=np.float64)
    if frame == "thousand":
        return np.full(2, THOUSAND)
    raise ValueError(f"frame is {frame!r}, expected 'absolute' (Qwen2.5-VL) or 'thousand' (Qwen3-VL)")


def points_to_policy(
    points_original: np.ndarray, original_wh: tuple[int, int], policy_wh: tuple[int, int], frame: Frame
) -> np.ndarray:
    """Points [..., 2] XY from the original to the policy frame, float64."""
    return np.asarray(points_original, dtype=np.float64) * _extent(policy_wh, frame) / np.asarray(original_wh)


def points_from_policy(
    points_policy: np.ndarray, original_wh: tuple[int, int], policy_wh: tuple[int, int], frame: Frame
) -> np.ndarray:
    """Points [..., 2] XY from the policy to the original frame, float64."""
    return np.asarray(points_policy, dtype=np.float64) * np.asarray(original_wh) / _extent(policy_wh, frame)


def boxes_to_policy(
    boxes_original: np.ndarray, original_wh: tuple[int, int], policy_wh: tuple[int, int], frame: Frame
) -> np.ndarray:
    """Boxes [..., 4] x1 y1 x2 y2 from the original to the policy frame, float64."""
    boxes = np.asarray(boxes_original, dtype=np.float64)
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return points_to_policy(corners, original_wh, policy_wh, frame).reshape(boxes.shape)


def boxes_from_policy(
    boxes_policy: np.ndarray, original_wh: tuple[int, int], policy_wh: tuple[int, int], frame: Frame
) -> np.ndarray:
    """Boxes [..., 4] x1 y1 x2 y2 from the policy to the original frame, float64."""
    boxes = np.asarray(boxes_policy, dtype=np.float64)
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return points_from_policy(corners, original_wh, policy_wh, frame).reshape(boxes.shape)


def open_image(path: str | Path) -> Image.Image:
    """Open an image as RGB, 8 bits a channel, with its EXIF orientation applied: the original frame.

    Palettes, grey levels and CMYK are converted, transparency is dropped, 16 bits are brought to 8.

    Raises:
        ImageError: the file is missing, cannot be decoded to its end, or holds numbers without a range to display.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies images that need no turn
            return _eight_bits(image, path).convert("RGB")
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(
            f"{path}: no such image. Row images are given relative to their parquet file or as absolute paths; "
            "prepare the data again where the images are, or move them to this path"
        ) from error
    except _UNREADABLE as error:
        raise ImageError(
            f"{path}: unreadable as an image ({error}). Replace it, and prepare rows made from it again"
        ) from error


# SyntaxError and ValueError: what Pillow's PNG and TIFF readers raise for broken chunks and tags.
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def _eight_bits(image: Image.Image, path: str | Path) -> Image.Image:
    """Grey images of 16 bits as 8 bits: Pillow's own conversion would turn everything above 255 white."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{path}: holds values from {values.min()} to {values.max()} (mode {image.mode}), expected 8 or 16 bits a "
            "channel. Save it as an 8-bit image and prepare the data again"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))


ORIENTATION = 0x0112  # the EXIF tag; 1: as stored, 5 to 8: width and height change places
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(path: str | Path) -> tuple[int, tuple[int, int]]:
    """EXIF orientation of an image file, 1 to 8, and its (W, H) as stored, before it is applied. Raises ImageError."""
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            return orientation if orientation in _TURNS else 1, image.size
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such image; prepare the data again where the images are") from error
    except _UNREADABLE as error:
        raise ImageError(
            f"{path}: unreadable as an image ({error}). Replace it, and prepare rows made from it again"
        ) from error


def turn_mask(mask_stored: np.ndarray, orientation: int) -> np.ndarray:
    """A mask (HxW bool) drawn on the image as stored, brought to the original frame."""
    if orientation == 1:
        return mask_stored
    return np.asarray(Image.fromarray(mask_stored.astype(np.uint8)).transpose(_TURNS[orientation])).astype(bool)


def turn_box(box_stored: np.ndarray, stored_wh: tuple[int, int], orientation: int) -> np.ndarray:
    """A box [4] x1 y1 x2 y2 drawn on the image as stored, of (W, H), brought to the original frame, float64."""
    corners = np.asarray(box_stored, dtype=np.float64).reshape(2, 2)
    x, y = corners.T
    width, height = stored_wh
    turned = {
        1: (x, y),
        2: (width - x, y),
        3: (width - x, height - y),
        4: (x, height - y),
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }[orientation]
    return np.array([turned[0].min(), turned[1].min(), turned[0].max(), turned[1].max()])


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal: the digest that rows carry. Raises ImageError when it is missing."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such image; prepare the data again where the images are") from error
    return digest.hexdigest()
