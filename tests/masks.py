"""Masks for tests."""

import numpy as np


def rectangle_in(size: tuple[int, int], x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    """A mask of `size` (H, W), bool: columns x1 to x2 and rows y1 to y2, the last ones not included."""
    mask = np.zeros(size, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask
