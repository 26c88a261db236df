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
    """Open an image as RGB with its EXIF orientation applied: the original frame.

    Raises:
        ImageError: the file is missing or cannot be decoded to its end.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise ImageError(
            f"{path}: no such image. Row images are given relative to their parquet file or as absolute paths; "
            "prepare the data again where the images are, or move them to this path"
        ) from error
    except (UnidentifiedImageError, OSError) as error:
        raise ImageError(f"{path}: unreadable as an image ({error}). Replace it and prepare the data again") from error


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
