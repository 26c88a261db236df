"""Rows and calls for tests of rewards: an image of SIDE x SIDE that the policy sees at its own size."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samr1_verl.geometry.masks import encode_rle
from tests.masks import rectangle_in
from tests.service.fake import image_file

SIDE = 840
EXTRA: dict[str, Any] = {"image": None, "sha256": None, "policy_size": [SIDE, SIDE], "frame": "absolute"}
SERVICE = {"mode": "embedded", "cache_gb": 1, "cache_dir": None}
SEGMENTER = {"backend": "onnx", "path": "boxes", "device": "auto", "dtype": "float32", "service": SERVICE}


def truth(boxes: Sequence[Sequence[float]], points: Sequence[Any] | None = None, **changes: Any) -> str:
    """Ground truth without masks; each object's points are its centre, twice, unless told otherwise."""
    if points is None:
        points = [[[(x1 + x2) / 2, (y1 + y2) / 2]] * 2 for x1, y1, x2, y2 in boxes]
    row = {"size": [SIDE, SIDE], "masks": [], "ignore": None, "boxes": boxes, "points": points}
    return json.dumps(row | changes)


def rectangle(x1: int, y1: int, x2: int, y2: int, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """A mask of the image, HxW bool, as `rectangle_in` makes it."""
    return rectangle_in(size, x1, y1, x2, y2)


def truth_with_masks(*boxes: tuple[int, int, int, int], **changes: Any) -> str:
    """Ground truth whose masks are the boxes."""
    return truth(boxes, **({"masks": [encode_rle(rectangle(*box)) for box in boxes]} | changes))


def image_extra(folder: Path) -> dict[str, Any]:
    """`extra_info` with an image of SIDE x SIDE, which a segmenter can open."""
    path, digest = image_file(folder, 7, (SIDE, SIDE))
    return EXTRA | {"image": str(path), "sha256": digest}


def think(answer: Any, reasoning: str = "Left.") -> str:
    """A response of the right form, whose answer is a text or any value as JSON."""
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return f"<think>{reasoning}</think><answer>{text}</answer>"


def seg_zero_answer(box: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> dict[str, Any]:
    return {"bbox": list(box), "points_1": list(first), "points_2": list(second)}


def objects(*boxes: Sequence[float], label: bool = False) -> list[dict[str, Any]]:
    """VisionReasoner's list, each point in the middle of its box; with StAR's labels on request."""
    extra = {"label": "shape"} if label else {}
    return [{**extra, "bbox_2d": list(b), "point_2d": [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2]} for b in boxes]


def score(compute_score: Any, text: str, row: str, extra: dict[str, Any] = EXTRA, **kwargs: Any) -> dict[str, float]:
    """What a reward returns, checked for what holds of every one: finite floats."""
    result = asyncio.run(compute_score("shapes", text, row, dict(extra), **kwargs))
    assert all(type(value) is float and np.isfinite(value) for value in result.values()), result
    return result
