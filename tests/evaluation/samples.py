"""Judged samples from masks, without a policy."""

from __future__ import annotations

from typing import Any

import numpy as np

from samr1_verl.evaluation.judge import judged
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.scoring.sample import Sample
from tests.masks import rectangle_in

SIZE = (24, 32)  # H, W
TRUTH = rectangle_in(SIZE, 4, 4, 24, 14)  # 20 columns, 10 rows


def sample_of(row: int, columns: int, image: int | None = None, **changes: Any) -> Sample:
    """A judged sample whose predicted mask is the truth's first columns, so that its IoU is columns / 20.

    Args:
        image: number of the image; None: one image per row.
    """
    usable = columns > 0
    values = {
        "index": row,
        "data_source": "test",
        "category": "",
        "sentence": f"sentence {row}",
        "image": f"{row if image is None else image}.png",
        "sha256": f"{row if image is None else image:064x}",
        "size": SIZE,
        "response": "<think>so</think><answer>[]</answer>" if usable else "no",
        "reason": None if usable else "no_answer",
        "shapes": (),
        "mask": encode_rle(rectangle_in(SIZE, 4, 4, 4 + columns, 14)),
        "truth": encode_rle(TRUTH),
        "ignore": None,
        "scores": {},
    }
    return judged(Sample.model_validate({**values, **changes}))


def samples_of(columns: np.ndarray | list[int], per_image: int = 1) -> list[Sample]:
    """One sample per entry, with `per_image` consecutive ones about the same image."""
    return [sample_of(row, int(number), row // per_image) for row, number in enumerate(columns)]
