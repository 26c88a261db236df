"""Lessons of the warm-up: scenes as examples, targets for every visual token, answers, and two losses."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import nn
from torch.nn import functional as F

from data.tiny_world import shapes, tiny_policy
from samr1_verl.geometry.masks import box_of, inscribed_points

CELLS = tiny_policy.FRAME // tiny_policy.CELL  # visual tokens per side
BINS = 35  # of 4 pixels each, for the box coordinates of stage 1
SCALE = tiny_policy.FRAME / shapes.IMAGE
SHRINK_MEAN, SHRINK_STD = 0.6, 0.18  # of the distance from the centre to each side, stage 3
IGNORE = -100
KIND_AT, PLACE_AT = 6, 9  # numbers of two response tokens: <think> it is the red CIRCLE at the UPPER left


@dataclass(frozen=True)
class Example:
    """A scene for the warm-up, in the policy frame: image FRAMExFRAMEx3 uint8, boxes [n, 4], points [n, 2, 2] in XY."""

    scene: shapes.Scene
    image: np.ndarray
    boxes: np.ndarray
    points: np.ndarray


def _draw(arguments: tuple[str, int, int, int]) -> list[Example]:
    """`count` scenes of a split from number `start` on."""
    split, seed, start, count = arguments
    examples = []
    for index in range(start, start + count):
        scene, _ = shapes.scene(split, seed, index)
        if not any(shapes.references(scene)):
            continue
        image = Image.fromarray(scene.image).resize((tiny_policy.FRAME,) * 2, Image.Resampling.BICUBIC)
        boxes = np.array([box_of(mask) for mask in scene.masks]) * SCALE
        points = np.array([inscribed_points(mask) for mask in scene.masks]) * SCALE
        slim = shapes.Scene(np.empty(0), scene.shapes, ())
        examples.append(Example(slim, np.array(image), boxes, points))
    return examples


def draw_pool(split: str, seed: int, count: int) -> list[Example]:
    """The first `count` scenes of a split, drawn by two processes."""
    chunk = 50
    jobs = [(split, seed, start, min(chunk, count - start)) for start in range(0, count, chunk)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        parts = track(pool.imap(_draw, jobs), f"drawing {split}", total=len(jobs))
        return [example for part in parts for example in part]


SIZES = (len(shapes.COLOURS) + 1, len(shapes.KINDS) + 1, *[BINS] * 4)


class Eyes(nn.Module):
    """Heads of dense prediction, with `sizes` classes. Stage 1's: colour, kind and the four box coordinates in bins."""

    def __init__(self, width: int, sizes: Sequence[int] = SIZES):
        super().__init__()
        self.sizes = list(sizes)
        self.head = nn.Linear(width, sum(self.sizes))

    def loss(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy; features [B·25, width], targets [B·25, heads] int64, IGNORE where nothing is taught."""
        parts = self.head(features).split(self.sizes, dim=1)
        losses = [
            F.cross_entropy(part, target, ignore_index=IGNORE)
            for part, target in zip(parts, targets.unbind(1), strict=True)
        ]
        return torch.stack(losses).mean()


def dense_targets(example: Example) -> np.ndarray:
    """[25, 6] int64: colour, kind, x1, y1, x2, y2 bins of the shape that covers each visual token, else none."""
    targets = np.full((CELLS * CELLS, 6), IGNORE, dtype=np.int64)
    targets[:, 0], targets[:, 1] = len(shapes.COLOURS), len(shapes.KINDS)
    for shape, box in zip(example.scene.shapes, example.boxes, strict=True):
        bins = np.clip(box / tiny_policy.FRAME * BINS, 0, BINS - 1).astype(np.int64)
        names = [list(shapes.COLOURS).index(shape.colour), shapes.KINDS.index(shape.kind)]
        targets[tokens_of(box)] = [*names, *bins]
    return targets


def tokens_of(box: np.ndarray) -> np.ndarray:
    """The visual tokens, [25] bool, that show a good part of a box [4], x1 y1 x2 y2 in the policy frame."""
    centres = (np.arange(CELLS) + 0.5) * tiny_policy.CELL
    grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    reach = np.maximum(tiny_policy.CELL / 2, (box[2:] - box[:2]).max() / 2)
    return np.abs(grid - (box[:2] + box[2:]) / 2).max(axis=1) <= reach


def gaze_loss(attention: torch.Tensor, target: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """The loss of two attention heads: mean negative log of their attention on the target's visual tokens.

    The first head counts from the shape's kind until its place is named (kind, at, the), the second head from its place
    on. attention [B, 2, T, T] from row to column, target [B, T] 0 or 1, response [B, T] bool.
    """
    missed = -(attention @ target[:, None, :, None]).squeeze(-1).add(1e-6).log()
    number = response.cumsum(1) * response  # 1, 2, … for the response's tokens, 0 elsewhere
    placed = number >= PLACE_AT
    named = (number >= KIND_AT) & ~placed
    return missed[:, 0][named].mean() + missed[:, 1][placed].mean()


def answer_text(
    example: Example,
    target: int,
    blur: bool,
    rng: np.random.Generator,
    most_repeats: int = 1,
    shrink: tuple[float, float] = (SHRINK_MEAN, SHRINK_STD),
) -> str:
    """The response that the policy is taught: the shape's name, its rough place, then box and points, policy frame.

    The reasoning is said 1 to `most_repeats` times, so that answers may have very different lengths. `shrink` is the
    mean and the standard deviation of a blurred box: of the distance from the centre to each side, 1 is exact.
    """
    box, points = example.boxes[target], example.points[target]
    centre = (box[:2] + box[2:]) / 2
    if blur:
        scale = np.clip(rng.normal(*shrink, size=4), 0.2, 1.1)
        half = (box[2:] - box[:2]) / 2
        box = np.concatenate([centre, centre]) + scale * np.concatenate([-half, half])
        points = centre + (points - centre) * shrink[0] + rng.normal(0, 0.1, size=(2, 2)) * half
    x1, y1, x2, y2 = np.clip(np.rint(box), 0, tiny_policy.FRAME).astype(int)
    (a, b), (c, d) = np.clip(np.rint(points), 0, tiny_policy.FRAME).astype(int)
    repeats = int(rng.integers(1, most_repeats + 1)) if most_repeats > 1 else 1
    return (
        f"<think>{' '.join([reasoning(example, target)] * repeats)}</think>"
        f'<answer>{{"bbox": [{x1}, {y1}, {x2}, {y2}], "points_1": [{a}, {b}], "points_2": [{c}, {d}]}}</answer>'
    )


def reasoning(example: Example, target: int) -> str:
    """The shape's name and its rough place in words."""
    box = example.boxes[target]
    column, row = np.minimum((box[:2] + box[2:]) / 2 // (tiny_policy.FRAME / 3), 2).astype(int)
    return f"it is the {example.scene.shapes[target].name} at the {tiny_policy.PLACES[3 * row + column]}"
