"""gIoU and cIoU by both published protocols, from the pixel counts of each sentence's mask.

    lisa     ignored pixels (label 255 in LISA's files) count on neither side; a term is I/(U + 1e-5), and 1 where the
             union is empty: an empty truth is met by an empty prediction only
    segzero  ignored pixels are foreground of the truth, as Seg-Zero's converter leaves them; an empty union is 0

gIoU is the mean over sentences, cIoU the sum of I over the sum of U. An unusable answer is an empty mask; no sentence
is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np

from samr1_verl.geometry.masks import intersection_union

EvalProtocol = Literal["lisa", "segzero"]
PROTOCOLS: tuple[EvalProtocol, ...] = get_args(EvalProtocol)
_SMOOTH = 1e-5  # LISA's


@dataclass(frozen=True)
class PixelCounts:
    """Predicted mask P against truth T, with the ignored pixels G, in pixels of the original image."""

    intersection: float  # of P and T, without G
    union: float  # of P and T, without G
    ignored: float = 0  # in G
    ignored_predicted: float = 0  # in both P and G

    @classmethod
    def of(cls, predicted: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None) -> PixelCounts:
        """From masks, HxW bool each; `ignore` None: every pixel counts. Raises MaskError for different sizes."""
        counted = intersection_union(predicted, truth, ignore)
        if ignore is None:
            return cls(*counted)
        return cls(*counted, int(np.count_nonzero(ignore)), int(np.count_nonzero(predicted & ignore)))

    @classmethod
    def in_scores(cls, scores: Mapping[str, float]) -> PixelCounts | None:
        """What a reward or an evaluation counted, by the names of these fields; None where it counts no pixels."""
        names = [field.name for field in fields(cls)]
        return cls(*(scores[name] for name in names)) if all(name in scores for name in names) else None

    def counted(self, protocol: EvalProtocol) -> tuple[float, float]:
        """I and U as the protocol counts them."""
        if protocol == "lisa":
            return self.intersection, self.union
        return self.intersection + self.ignored_predicted, self.union + self.ignored

    def iou(self, protocol: EvalProtocol) -> float:
        """The sentence's term of gIoU, in [0, 1]."""
        intersection, union = self.counted(protocol)
        if protocol == "lisa":
            return intersection / (union + _SMOOTH) if union else 1.0
        return intersection / union if union else 0.0


def giou_ciou(counts: Sequence[PixelCounts], protocol: EvalProtocol) -> tuple[float, float]:
    """gIoU and cIoU, each in [0, 1], over at least one sentence; cIoU is 0 where no union has a pixel."""
    giou = sum(sentence.iou(protocol) for sentence in counts) / len(counts)
    intersections, unions = zip(*(sentence.counted(protocol) for sentence in counts), strict=True)
    return giou, sum(intersections) / sum(unions) if sum(unions) else 0.0
