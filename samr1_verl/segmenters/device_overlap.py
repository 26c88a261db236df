"""The overlap of masks on the segmenter's device: the true mask is copied there, and only pixel counts come back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.masks import MaskError
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.segmenters.base import DevicePrediction


class DeviceTruth:
    """A true mask on a device, for the predictions of a whole group.

    Args:
        truth: HxW bool, original frame.
        ignore: pixels that do not count, HxW bool; None: every pixel counts.
        device: the predictions' device.
    """

    def __init__(self, truth: np.ndarray, ignore: np.ndarray | None, device: str) -> None:
        self._ignore = None if ignore is None else _on(device, ignore)
        counted = truth if ignore is None else truth & ~ignore
        self._truth = _on(device, counted)
        self._pixels = int(np.count_nonzero(counted))
        self._ignored = 0 if ignore is None else int(np.count_nonzero(ignore))

    def overlap(self, predictions: Sequence[DevicePrediction]) -> Overlap:
        """As `geometry.overlap.overlap_of`: the same counts, which are whole numbers. Raises MaskError as it does."""
        union = predictions[0].mask
        for prediction in predictions[1:]:
            union = union | prediction.mask
        if union.shape != self._truth.shape:
            raise MaskError(
                "shape_differs",
                "predicted mask",
                f"found {tuple(union.shape)}, ground truth is {tuple(self._truth.shape)}: both must be the image's HxW",
            )
        sums = [(union & self._truth).sum(), union.sum()]
        if self._ignore is not None:
            sums.append((union & self._ignore).sum())
        intersection, predicted, *ignored = torch.stack(sums).tolist()  # the one copy to host memory
        inside = ignored[0] if ignored else 0
        pixels = PixelCounts(intersection, predicted - inside + self._pixels - intersection, self._ignored, inside)
        return Overlap(pixels, float(np.mean([prediction.score for prediction in predictions])))


def _on(device: str, mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask)).to(device)
