"""Figures of a policy that looks at its mask: turns, ends, and the overlap of the masks turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from samr1_verl.evaluation.judge import count_pixels, counts_in
from samr1_verl.geometry.giou import PROTOCOLS, PixelCounts, giou_ciou
from samr1_verl.scoring.sample import Sample

COMPARED = ("lisa", "segzero")  # protocols of the figures turn by turn


def turn_figures(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """The figures of dialogues; None: every sample has one turn.

    Args:
        samples: judged samples, at least one.

    Returns:
        `mean`: number of turns, `tokens`: number of generated tokens of all turns, None where unknown, both means over
        the dialogues; `done`: share of the dialogues that end with `done`; `after`: per turn its number `turn`, the
        number of dialogues that have it (`reached`), and per protocol of COMPARED the figures of
        `geometry.giou.giou_ciou` if every dialogue stopped after it.
    """
    lengths = [max(1, len(sample.turns)) for sample in samples]
    if max(lengths) == 1:
        return None
    tokens = [sample.tokens for sample in samples if sample.tokens is not None]
    return {
        "mean": float(np.mean(lengths)),
        "done": float(np.mean([bool(sample.turns) and sample.turns[-1].mask is None for sample in samples])),
        "tokens": float(np.mean(tokens)) if len(tokens) == len(samples) else None,
        "after": [_stopped(samples, lengths, turn) for turn in range(1, max(lengths) + 1)],
    }


def _stopped(samples: Sequence[Sample], lengths: Sequence[int], turn: int) -> dict[str, Any]:
    counts = [counts_after(sample, turn) for sample in samples]
    figures = {name: giou_ciou(counts, PROTOCOLS[name]) for name in COMPARED}
    return {"turn": turn, "reached": sum(length >= turn for length in lengths), **figures}


def counts_after(sample: Sample, turn: int) -> PixelCounts:
    """Pixels of a judged sample's mask and object if its dialogue stopped after a turn, from 1."""
    return counts_in(sample) if turn >= len(sample.turns) else count_pixels(sample.after(turn))
