"""A backend whose masks are the boxes, as fast as writing them: `samr1.segmenter.backend: benchmarks.boxes`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from samr1_verl.config import SegmenterConfig
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.base import Embedding, Prediction


class Boxes:
    """Implements `base.Segmenter`."""

    identity = "boxes"

    def encode(self, image: np.ndarray) -> Embedding:
        return Embedding({}, (image.shape[0], image.shape[1]))

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        return [Prediction(rectangle(prompt.box, embedding.size), 1.0) for prompt in prompts]


def rectangle(box: Sequence[float] | None, size: tuple[int, int]) -> np.ndarray:
    """The mask of a box x1 y1 x2 y2, HxW bool of `size` (H, W), edges rounded to pixels."""
    mask = np.zeros(size, dtype=bool)
    x1, y1, x2, y2 = (round(edge) for edge in box or ())
    mask[y1:y2, x1:x2] = True
    return mask


def problems(config: SegmenterConfig) -> Iterator[str]:
    """None: there are no weights."""
    return iter(())


def load(config: SegmenterConfig) -> Boxes:
    return Boxes()
