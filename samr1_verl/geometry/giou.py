"""Figures of published evaluators, from the pixel counts of each sentence: gIoU, cIoU, N-acc, T-acc, Pr@0.5 to 0.9.

    gIoU    mean of the sentences' IoUs
    cIoU    sum of the intersections / sum of the unions
    N-acc   share of the sentences without a target that are answered with "no such object"
    T-acc   share of the sentences with a target that are answered with an object
    Pr@k    share of the sentences with a target whose IoU is at least k

Evaluators differ in the ignored pixels, in an empty union, in unusable answers, and in what counts as the answer "no
such object". Each `EvalProtocol` names these rules. docs/evaluate.md has their sources by repository, file and line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from samr1_verl.geometry.masks import intersection_union

# objects: a usable answer. nothing: a usable answer that says that no such object is in the image. unusable: no answer,
# or one that cannot be read.
Answered = Literal["objects", "nothing", "unusable"]
COUNTS = ("intersection", "union", "ignored", "ignored_predicted")  # the fields of PixelCounts that rewards return
PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
_GRES_PIXELS = 50  # GRES, arXiv 2306.00968: a mask with fewer pixels counts as empty


@dataclass(frozen=True)
class PixelCounts:
    """One sentence: predicted mask P against truth T, with the ignored pixels G, in pixels of the original image.

    The masks of a row's objects are united first. An answer that is unusable or says nothing has an empty P.
    """

    intersection: float  # of P and T, without G
    union: float  # of P and T, without G
    ignored: float = 0  # in G
    ignored_predicted: float = 0  # in both P and G
    truth: float | None = None  # in T, without G; None: not counted, as in rewards, which need no N-acc
    answer: Answered = "objects"

    @classmethod
    def of(
        cls, predicted: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None, answer: Answered = "objects"
    ) -> PixelCounts:
        """The counts of two masks, HxW bool each. `ignore`: HxW bool; None: every pixel counts.

        Raises:
            MaskError: the masks have different sizes.
        """
        true = int(np.count_nonzero(truth if ignore is None else truth & ~ignore))
        return replace(cls.overlap(predicted, truth, ignore), truth=true, answer=answer)

    @classmethod
    def overlap(cls, predicted: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None) -> PixelCounts:
        """As `of`, without the count of the truth. Raises MaskError as `of`."""
        counted = intersection_union(predicted, truth, ignore)
        if ignore is None:
            return cls(*counted)
        return cls(*counted, int(np.count_nonzero(ignore)), int(np.count_nonzero(predicted & ignore)))

    @classmethod
    def in_scores(cls, scores: Mapping[str, float], answer: Answered) -> PixelCounts | None:
        """The counts in the scores of a reward or an evaluation, under the names of the fields; None: not there."""
        if any(name not in scores for name in COUNTS):
            return None
        counts = {name: scores[name] for name in COUNTS}
        return cls(**counts, truth=scores.get("truth"), answer=answer)

    def scores(self) -> dict[str, float]:
        """The counts as floats, by name, for `in_scores`."""
        values = {name: float(getattr(self, name)) for name in COUNTS}
        return values if self.truth is None else {**values, "truth": float(self.truth)}

    @property
    def truth_pixels(self) -> float:
        """Pixels in T, without G. Raises ValueError where they were not counted."""
        if self.truth is None:
            raise ValueError("the pixels of the truth were not counted: use PixelCounts.of")
        return self.truth


@dataclass(frozen=True)
class EvalProtocol:
    """The rules of one published evaluator."""

    name: str
    ignored: Literal["left out", "object"]  # pixels labelled 255 count nowhere, or as part of the true mask
    empty_union: float | None  # IoU where no counted pixel is in P or T; None: the row is left out
    unusable: Literal["wrong", "empty mask"]  # wrong: 0 also where the union is empty, and never left out
    no_target: Literal["said", "empty mask"]  # answers that count as "no such object": [] alone, or any empty mask
    small: int = 0  # a mask with fewer counted pixels counts as empty, and as "no such object"
    epsilon: float = 0.0  # added to the union in the IoU

    def counted(self, counts: PixelCounts) -> tuple[float, float]:
        """Intersection and union by these rules, in pixels."""
        if self._too_small(counts):
            return 0, counts.truth_pixels + self._of(counts.ignored)
        intersection = counts.intersection + self._of(counts.ignored_predicted)
        return intersection, counts.union + self._of(counts.ignored)

    def iou(self, counts: PixelCounts) -> float | None:
        """The IoU of the sentence, in [0, 1]; None: the row is left out."""
        intersection, union = self.counted(counts)
        if union:
            return intersection / (union + self.epsilon)
        if self.empty_union is None:
            return 0.0 if counts.answer == "unusable" else None
        return self.empty_union if self._says_nothing(counts, predicted=0) else 0.0

    def has_target(self, counts: PixelCounts) -> bool:
        """Whether a pixel of the truth counts. Raises ValueError where the truth was not counted."""
        return counts.truth_pixels + self._of(counts.ignored) > 0

    def told_right(self, counts: PixelCounts) -> bool:
        """Whether the answer is right about there being a target at all. Raises ValueError as `has_target`."""
        nothing = self._says_nothing(counts, self._predicted(counts))
        return counts.answer != "unusable" and not nothing if self.has_target(counts) else nothing

    def _says_nothing(self, counts: PixelCounts, predicted: float) -> bool:
        if counts.answer == "unusable":
            return self.unusable == "empty mask"
        if counts.answer == "nothing" or self._too_small(counts):
            return True
        return self.no_target == "empty mask" and not predicted

    def _too_small(self, counts: PixelCounts) -> bool:
        return bool(self.small) and counts.answer == "objects" and self._predicted(counts) < self.small

    def _predicted(self, counts: PixelCounts) -> float:
        """Counted pixels in P, by the sizes of T, of the intersection and of the union."""
        outside = counts.union - counts.truth_pixels + counts.intersection
        return outside + self._of(counts.ignored_predicted)

    def _of(self, ignored: float) -> float:
        return ignored if self.ignored == "object" else 0


PROTOCOLS: dict[str, EvalProtocol] = {
    protocol.name: protocol
    for protocol in (
        EvalProtocol("lisa", "left out", 1.0, "wrong", "empty mask", epsilon=1e-5),
        EvalProtocol("segzero", "object", 0.0, "wrong", "empty mask"),
        EvalProtocol("segzero_scripts", "object", None, "wrong", "empty mask"),
        EvalProtocol("vision_reasoner", "object", 0.0, "wrong", "empty mask"),
        EvalProtocol("vision_reasoner_no_object", "object", 1.0, "wrong", "said"),
        EvalProtocol("star", "object", 1.0, "empty mask", "empty mask"),
        EvalProtocol("rela", "left out", 1.0, "wrong", "said"),
        EvalProtocol("rela_50", "left out", 1.0, "wrong", "said", small=_GRES_PIXELS),
    )
}


def giou_ciou(counts: Sequence[PixelCounts], protocol: EvalProtocol) -> dict[str, float]:
    """`giou` and `ciou`, each in [0, 1], and `left_out`, the number of rows that the protocol leaves out.

    cIoU is 0 where all unions are empty. `giou` and `ciou` are missing where no row is left.
    """
    rows = [(iou, sentence) for sentence in counts if (iou := protocol.iou(sentence)) is not None]
    result = {"left_out": float(len(counts) - len(rows))}
    if not rows:
        return result
    intersections, unions = zip(*(protocol.counted(sentence) for _, sentence in rows), strict=True)
    total = sum(unions)
    giou = sum(iou for iou, _ in rows) / len(rows)
    return {"giou": giou, "ciou": sum(intersections) / total if total else 0.0, **result}


def figures(counts: Sequence[PixelCounts], protocol: EvalProtocol) -> dict[str, float]:
    """The figures of sentences, each in [0, 1], by name: `giou`, `ciou`, `n_acc`, `t_acc`, `pr@0.5` to `pr@0.9`.

    `left_out` is the number of rows that the protocol leaves out; they count in no other figure. A figure that has no
    rows is missing: `n_acc` without sentences that lack a target, `t_acc` and `pr@…` without sentences that have one.

    Raises:
        ValueError: the truth of a sentence was not counted (`PixelCounts.of` counts it).
    """
    result = giou_ciou(counts, protocol)
    kept = [(sentence, iou) for sentence in counts if (iou := protocol.iou(sentence)) is not None]
    with_target = [(sentence, iou) for sentence, iou in kept if protocol.has_target(sentence)]
    without = [sentence for sentence, _ in kept if not protocol.has_target(sentence)]
    if without:
        result["n_acc"] = sum(map(protocol.told_right, without)) / len(without)
    if with_target:
        result["t_acc"] = sum(protocol.told_right(sentence) for sentence, _ in with_target) / len(with_target)
        for least in PRECISIONS:
            result[f"pr@{least}"] = sum(iou >= least for _, iou in with_target) / len(with_target)
    return result
