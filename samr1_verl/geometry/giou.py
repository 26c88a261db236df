"""gIoU and cIoU by both published protocols, from pixel counts of the intersection I and the union U per sentence.

    lisa     ignored pixels (label 255 in LISA's files) are counted neither in I nor in U; the IoU of a sentence is
             I/(U + 1e-5), and 1 where the union is empty, that is where true and predicted mask are both empty
    segzero  ignored pixels count as part of the true mask, as in Seg-Zero's converted data; the IoU is 0 where the
             union is empty

gIoU is the mean of the sentences' IoUs. cIoU is the sum of I divided by the sum of U. An unusable answer counts as an
empty mask, and every sentence counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np

from samr1_verl.geometry.masks import intersection_union

EvalProtocol = Literal["lisa", "segzero"]
PROTOCOLS: tuple[EvalProtocol, ...] = get_args(EvalProtocol)
_SMOOTH = 1e-5  # from LISA's evaluation


@dataclass(frozen=True)
class PixelCounts:
    """Predicted mask P against truth T, with the ignored pixels G, in pixels of the original image."""

    intersection: float  # of P and T, without G
    union: float  # of P and T, without G
    ignored: float = 0  # in G
    ignored_predicted: float = 0  # in both P and G

    @classmethod
    def of(cls, predicted: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None) -> PixelCounts:
        """The counts of two masks, HxW bool each. `ignore`: HxW bool; None: every pixel counts.

        Raises:
            MaskError: the masks have different sizes.
        """
        counted = intersection_union(predicted, truth, ignore)
        if ignore is None:
            return cls(*counted)
        return cls(*counted, int(np.count_nonzero(ignore)), int(np.count_nonzero(predicted & ignore)))

    @classmethod
    def in_scores(cls, scores: Mapping[str, float]) -> PixelCounts | None:
        """The counts in the scores of a reward or an evaluation, under the names of these fields; None: not there."""
        names = [field.name for field in fields(cls)]
        return cls(*(scores[name] for name in names)) if all(name in scores for name in names) else None

    def counted(self, protocol: EvalProtocol) -> tuple[float, float]:
        """I and U by the protocol, in pixels."""
        if protocol == "lisa":
            return self.intersection, self.union
        return self.intersection + self.ignored_predicted, self.union + self.ignored

    def iou(self, protocol: EvalProtocol) -> float:
        """The IoU of the sentence by the protocol, in [0, 1]."""
        intersection, union = self.counted(protocol)
        if protocol == "lisa":
            return intersection / (union + _SMOOTH) if union else 1.0
        return intersection / union if union else 0.0


def giou_ciou(counts: Sequence[PixelCounts], protocol: EvalProtocol) -> tuple[float, float]:
    """gIoU and cIoU of at least one sentence, each in [0, 1]; cIoU is 0 where all unions are empty."""
    giou = sum(sentence.iou(protocol) for sentence in counts) / len(counts)
    intersections, unions = zip(*(sentence.counted(protocol) for sentence in counts), strict=True)
    return giou, sum(intersections) / sum(unions) if sum(unions) else 0.0
