"""Masks: compressed COCO RLE, pixel counts, and the box and points that describe a mask.

Legend: H, W are the size of the original image in pixels; a mask is HxW bool in the original frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

from samr1_verl import Samr1Error


class MaskError(Samr1Error, ValueError):
    """An RLE that does not decode to a mask of the size it claims."""


def encode_rle(mask: np.ndarray) -> str:
    """Compress a mask, HxW bool, to COCO RLE counts: ASCII text that JSON can hold."""
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def decode_rle(counts: str, size: tuple[int, int]) -> np.ndarray:
    """Expand COCO RLE counts to a mask, HxW bool, where `size` is (H, W).

    Does not use pycocotools' decoder, which checks neither characters nor length and may read past its buffer.

    Raises:
        MaskError: the counts do not decode, or their number of pixels is not H·W.
    """
    return mask_of_runs(rle_runs(counts, size), size)


def mask_of_runs(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask, HxW bool, of run lengths as `rle_runs` gives them."""
    height, width = size
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def rle_runs(counts: str, size: tuple[int, int]) -> np.ndarray:
    """The run lengths of COCO RLE counts, int64, column by column; the first run is of pixels outside the mask.

    Raises:
        MaskError: as `decode_rle`.
    """
    return np.array(_checked_runs(counts, size), dtype=np.int64)


def union_of_runs(masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The run lengths of the union of masks, each given by its run lengths; no masks: one run outside.

    Takes time for the runs and not for the pixels of each mask: a short text may hold many masks of a large image.
    """
    height, width = size
    edges = [np.cumsum(runs) for runs in masks]
    ends = np.sort(np.concatenate([[], *(edge[1::2] for edge in edges)]).astype(np.int64))
    starts = np.sort(np.concatenate([[], *(edge[0::2][: len(edge) // 2] for edge in edges)]).astype(np.int64))
    if not len(starts):
        return np.array([height * width], dtype=np.int64)
    apart = starts[1:] > ends[:-1]  # at such a start, all earlier runs have ended
    union = np.column_stack([starts[np.r_[True, apart]], ends[np.r_[apart, True]]])
    return np.diff(union.ravel(), prepend=0, append=height * width)


def coco_rle(counts: str, size: tuple[int, int]) -> dict[str, Any]:
    """The counts in pycocotools' form of a mask of `size` (H, W). Raises MaskError as `decode_rle`."""
    _checked_runs(counts, size)
    return {"size": [*size], "counts": counts.encode("ascii")}


def _checked_runs(counts: str, size: tuple[int, int]) -> list[int]:
    height, width = size
    runs = _runs(counts)
    if sum(runs) != height * width:
        raise MaskError(
            "pixels_differ", "RLE", f"describes {sum(runs)} pixels, the image has {height}x{width} = {height * width}"
        )
    return runs


def _runs(counts: str) -> list[int]:
    """Run lengths of compressed counts: base 32 with a continuation bit, delta-coded from the fourth run on."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise MaskError("bad_character", "RLE", f"holds {character!r}, which compressed COCO counts never contain")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            if shift > 60:  # no image has so many pixels; without this limit the number could grow without end
                raise MaskError("run_too_long", f"RLE run {len(runs)}", "has more than 60 bits")
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            raise MaskError("negative_run", f"RLE run {len(runs) - 1}", f"is negative ({runs[-1]})")
        value = shift = 0
    if shift:
        raise MaskError("incomplete_rle", "RLE", "ends in the middle of a number")
    return runs


def union_rle(counts: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    """Union of masks given as RLE counts, HxW bool, where `size` is (H, W); no masks: all False. Raises MaskError."""
    return mask_of_runs(union_of_runs([rle_runs(mask, size) for mask in counts], size), size)


def intersection_union(pred: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> tuple[int, int]:
    """Number of pixels in the intersection and in the union of two masks, HxW bool, without the `ignore` pixels.

    Args:
        ignore: HxW bool; None: every pixel counts.

    Raises:
        MaskError: the masks have different sizes.
    """
    if pred.shape != truth.shape:
        raise MaskError(
            "shape_differs",
            "predicted mask",
            f"found {pred.shape}, ground truth is {truth.shape}: both must be the image's HxW",
        )
    if ignore is not None:
        pred, truth = pred & ~ignore, truth & ~ignore
    intersection = int(np.count_nonzero(pred & truth))
    return intersection, int(np.count_nonzero(pred)) + int(np.count_nonzero(truth)) - intersection


def box_of(mask: np.ndarray) -> list[float]:
    """The tight box [x1, y1, x2, y2] of a mask, HxW bool, in the original frame.

    Pixel (column i, row j) covers [i, i+1) x [j, j+1), so x2 and y2 are one past the last pixel.

    Raises:
        MaskError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise MaskError("empty_mask", "mask", "it is empty and has no box")
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def inscribed_points(mask: np.ndarray, count: int = 2) -> list[list[float]]:
    """Centres [x, y] of the largest inscribed circles of a mask, HxW bool, in the original frame; always `count`.

    Each circle is removed from the mask before the next one is computed, as in Seg-Zero's data preparation. Where no
    pixel is left, the last centre is repeated.

    Raises:
        MaskError: the mask is empty.
    """
    if not mask.any():
        raise MaskError("empty_mask", "mask", "it is empty and has no inscribed circle")
    # Only the mask's box: the distance transform takes time per pixel, and pixels outside do not change the circles.
    left, top, right, bottom = (int(edge) for edge in box_of(mask))
    remaining = np.pad(mask[top:bottom, left:right].astype(bool), 1)  # a circle also ends at the image's border
    centres: list[list[float]] = []
    rows, columns = np.ogrid[: remaining.shape[0], : remaining.shape[1]]
    for _ in range(count):
        distance = ndimage.distance_transform_edt(remaining)
        row, column = np.unravel_index(int(np.argmax(distance)), distance.shape)
        radius = distance[row, column]
        if radius == 0:
            centres.append(centres[-1])
            continue
        centres.append([left + float(column) - 0.5, top + float(row) - 0.5])  # minus the padding, plus half a pixel
        remaining &= (rows - row) ** 2 + (columns - column) ** 2 >= radius**2
    return centres
