"""Mutated answers for `tests.attack.mutations`: every parser and every reward, on rows with and without an object."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reward_fns import composed, dr_seg, samr1, seg_zero, star, vision_reasoner
from samr1_verl.answers import Answer, parse_answer
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters.base import Prediction

SIDE, BOX, POINT = 24, (4, 4, 16, 16), (10, 10)
TERMS = {"think": 1, "format": 1, "mask_iou": 1, "s_measure": 1, "boundary_iou": 1, "point_count": 1, "no_target": 1}
REWARDS: dict[str, tuple[Any, dict[str, Any], float]] = {  # function, `samr1.reward`, maximum score
    "samr1": (samr1.compute_score, {}, 6),
    "seg_zero": (seg_zero.compute_score, {}, 5),
    "vision_reasoner": (vision_reasoner.compute_score, {}, 7),
    "star": (star.compute_score, {}, 13),
    "composed": (composed.compute_score, {"terms": TERMS}, 7),
    "dr_seg": (dr_seg.compute_score, {"window": {"path": None, "step": 32}}, 8),
}
STRICT = ("seg_zero", "vision_reasoner", "star", "dr_seg")  # have a strict variant
OF_NOTHING = ("samr1", "star", "composed")  # in which `[]` earns most on a row without an object
UNITS = (
    "<think>", "</think>", "<answer>", "</answer>", "[", "]", "{", "}", "{}", "[]", '"', "\\", ",", ":", ". ", "\n",
    "0", "-1", "1e400", "NaN", "Infinity", "9" * 400, "null", "true", "é", "\ud800", "\0", "\U0001f600", "```json",
    '"bbox"', '"bbox_2d"', '"point_2d"', '"points"', '"labels"', '"points_1"', '"label"', "<look>x</look>", "1.5", "4",
)  # fmt: skip


class BoxClient:
    """A segmenter's client whose masks are the boxes, without an image file."""

    async def segment(self, image: str | Path, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]:
        return [Prediction(self._mask([prompt]), 1.0) for prompt in prompts]

    async def overlap(self, image: str | Path, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth) -> Overlap:
        union, ignore = truth.union_and_ignore()
        return Overlap(PixelCounts.of(self._mask(prompts), union, ignore), 1.0)

    def _mask(self, prompts: Sequence[Prompt]) -> np.ndarray:
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        for prompt in prompts:
            assert prompt.box is not None
            x1, y1, x2, y2 = (min(max(0, math.floor(edge)), SIDE) for edge in prompt.box)
            mask[y1:y2, x1:x2] = True
        return mask


def row(objects: int) -> str:
    """Ground truth with 0 or 1 object."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    points = [[list(POINT), [8, 8]]] * objects
    truth = {"masks": [encode_rle(mask)] * objects, "boxes": [list(BOX)] * objects, "points": points}
    return json.dumps({"size": [SIDE, SIDE], "ignore": None, **truth})


def responses() -> list[str]:
    """Right answers in every published form, and some that say that nothing is there."""
    two = {"points_1": list(POINT), "points_2": [8, 8]}
    answers: list[Any] = [
        {"bbox": BOX, **two},
        {"bbox": BOX, "points": [POINT, [8, 8]], "labels": [1, 0]},
        [{"bbox_2d": BOX, "point_2d": POINT, "label": "shape"}],
        [{"bbox_2d": BOX, "point_2d": POINT}] * 3,
        [],
    ]
    return [f"<think>The left one.</think>\n<answer>{json.dumps(answer)}</answer>" for answer in answers]


def mutated(text: str, random: np.random.Generator) -> str:
    """A response with up to eight mutations; one in a hundred is a repetition of up to 1 MB."""
    if random.random() < 0.01:
        unit = UNITS[random.integers(len(UNITS))]
        length = int(10 ** random.uniform(3, 6))
        return text + unit * max(1, length // len(unit)) + text
    for _ in range(random.integers(9)):
        start = int(random.integers(len(text) + 1))
        end = min(len(text), start + int(random.geometric(0.2)))
        choice = random.integers(4)
        if choice == 0:
            text = text[:start] + text[end:]
        elif choice == 1:
            text = text[:start] + UNITS[random.integers(len(UNITS))] * int(random.geometric(0.5)) + text[start:]
        elif choice == 2:
            text = text[:start] + text[start:end] * 2 + text[end:]
        else:
            text = text[:start] + chr(int(random.integers(1, 0x2FF))) + text[end:]
    return text


class Attempt:
    """Makes an answer and scores it with everything. Raises AssertionError for a score that cannot be."""

    def __init__(self) -> None:
        self._responses, self._rows, self._client = responses(), (row(0), row(1)), BoxClient()
        self._most = {name: self._score(name, self._responses[-1], 0)["score"] for name in OF_NOTHING}

    def __call__(self, random: np.random.Generator) -> str:
        text = mutated(self._responses[random.integers(len(self._responses))], random)
        parse_answer(text, lenient=True)
        for name in REWARDS:
            found = self._score(name, text, 1)
            if name in STRICT:
                strictly = self._score(name, text, 1, strict=True)
                if name in ("vision_reasoner", "star"):  # Seg-Zero's first braces may be wrong ones in the thinking
                    assert strictly["score"] <= found["score"], f"{name}: strict earns more for {text[:200]!r}"
            if name in OF_NOTHING:
                nothing = self._score(name, text, 0)
                most = self._most[name]
                assert nothing["score"] <= most, f"{name}: {nothing['score']} without an object for {text[:200]!r}"
                assert nothing["score"] < most or nothing["answer/no_target"], f"{name}: as good as []: {text[:200]!r}"
        return "accepted" if isinstance(parse_answer(text), Answer) else "refused"

    def _score(self, name: str, text: str, objects: int, **more: Any) -> dict[str, float]:
        function, reward, most = REWARDS[name]
        extra = {"image": "none.png", "sha256": "0" * 64, "policy_size": [SIDE, SIDE], "frame": "absolute"}
        keywords = {"segmenter": self._client, "reward": {**reward, **more}}
        found = asyncio.run(function("shapes", text, self._rows[objects], extra, **keywords))
        assert all(math.isfinite(value) for value in found.values()), f"{name}: {found} for {text[:200]!r}"
        assert 0 <= found["score"] <= most + 1e-9 and 0 <= found["acc"] <= 1, f"{name}: {found} for {text[:200]!r}"
        return found
