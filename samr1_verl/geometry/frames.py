"""Conversion of coordinates between the original frame and the policy frame.

Frames:
    original: pixels of the image file after its EXIF orientation is applied. Masks and IoU live here.
    policy: the coordinates in prompts and answers of the policy. `absolute` (Qwen2.5-VL): pixels of the resized image;
        `thousand` (Qwen3-VL): 0 to 1000 over the image's width and height.

Coordinates are continuous: pixel (column i, row j) covers [i, i+1) x [j, j+1). A resize is therefore a plain
multiplication, and the borders of the image are the same in all frames. A segmenter scales from the original frame to
its own input by itself.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

Frame = Literal["absolute", "thousand"]
THOUSAND = 1000.0

# By EXIF orientation: the operation that turns the stored pixels to the original frame; 5 to 8 swap width and height.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    """Points [..., 2] XY from the original to the policy frame, float64. Raises ValueError for an unknown frame.

    Args:
        original_wh: (W, H) of the original image. policy_wh: (W, H) of the image that the policy saw.
    """
    return np.asarray(points_original, dtype=np.float64) * _extent(policy_wh, frame) / np.asarray(original_wh)


def points_from_policy(
    points_policy: np.ndarray, original_wh: tuple[int, int], policy_wh: tuple[int, int], frame: Frame
) -> np.ndarray:
    """Points [..., 2] XY from the policy to the original frame, float64; the inverse of `points_to_policy`."""
    return np.asarray(points_policy, dtype=np.float64) * np.asarray(original_wh) / _extent(policy_wh, frame)


def boxes_to_policy(
    boxes_original: np.ndarray, original_wh: tuple[int, int], policy_wh: tuple[int, int], frame: Frame
) -> np.ndarray:
    """Boxes [..., 4] x1 y1 x2 y2 from the original to the policy frame, float64; as `points_to_policy`."""
    boxes = np.asarray(boxes_original, dtype=np.float64)
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return points_to_policy(corners, original_wh, policy_wh, frame).reshape(boxes.shape)


def boxes_from_policy(
    boxes_policy: np.ndarray, original_wh: tuple[int, int], policy_wh: tuple[int, int], frame: Frame
) -> np.ndarray:
    """Boxes [..., 4] x1 y1 x2 y2 from the policy to the original frame, float64; the inverse of `boxes_to_policy`."""
    boxes = np.asarray(boxes_policy, dtype=np.float64)
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return points_from_policy(corners, original_wh, policy_wh, frame).reshape(boxes.shape)


def turn_mask(mask_stored: np.ndarray, orientation: int) -> np.ndarray:
    """A mask of the stored image, HxW bool, turned to the original frame. `orientation` is EXIF's, 1 to 8."""
    if orientation == 1:
        return mask_stored
    return np.asarray(Image.fromarray(mask_stored.astype(np.uint8)).transpose(_TURNS[orientation])).astype(bool)


def turn_box(box_stored: np.ndarray, stored_wh: tuple[int, int], orientation: int) -> np.ndarray:
    """A box [4] x1 y1 x2 y2 of the stored image turned to the original frame, [4] float64.

    Args:
        stored_wh: (W, H) of the image before its EXIF orientation is applied.
        orientation: EXIF orientation, 1 to 8.
    """
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
