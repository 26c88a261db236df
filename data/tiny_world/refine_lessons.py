"""Lessons about masks on the image: answers with the small SAM's masks, targets for visual tokens, and dialogues."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.progress import track

from data.tiny_world import shapes, tiny_policy
from data.tiny_world.lessons import CELLS, IGNORE, SCALE, SHRINK_MEAN, SHRINK_STD, Example, answer_text, reasoning
from samr1_verl.answers import Answer, parse_answer
from samr1_verl.geometry.drawing import draw
from samr1_verl.geometry.frames import boxes_from_policy, points_from_policy
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.scoring.refinement import COLOUR
from samr1_verl.scoring.turns import DONE
from samr1_verl.service.client import get_client

FIRST = (SHRINK_MEAN, SHRINK_STD)  # mean and deviation of a first answer's box, as in stage 3 of the warm-up
ROUGH = (0.8, 0.12)  # of a correction's box
BETTER = (0.9, 0.12)  # of a box that is there only to be seen
LEVELS = (FIRST, FIRST, ROUGH, BETTER)  # of the answers that are segmented, for each shape
GOOD = 0.9  # IoU of the mask above which the lesson says `done`
NOISE = 0.1  # share of the turns in which the lesson stops too early or goes on too long
FITS = (0.02, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # borders of the bins of a mask's IoU with a shape
COVERS = (0.02, 0.5, 0.98)  # borders of the bins of the share of a visual token that the mask covers


@dataclass(frozen=True, eq=False)
class Seen:
    """An answer about a shape, and its mask.

    `shape` is the shape's number, `mask` FRAMExFRAME bool, `iou` that of SAM's mask with the shape's, original frame.
    """

    text: str
    shape: int
    mask: np.ndarray
    iou: float


def seen_of(split: str, seed: int, examples: list[Example], segmenter: Any, folder: Path) -> list[list[Seen]]:
    """LEVELS of answers about each shape of the split's first scenes, segmented. `folder` keeps them for a rerun.

    Raises:
        ConfigError, SegmenterError: as `reward_fns.samr1.compute_score`.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    found = []
    scenes = zip(examples, shapes.scenes(split, seed), strict=False)
    for number, (example, (scene, _)) in enumerate(track(scenes, f"masks {split}", total=len(examples))):
        kept = folder / f"{split}_{seed}_{number:05d}.npz"
        if not kept.exists():
            rng = np.random.default_rng([seed, number])
            asyncio.run(_segment(example, scene, segmenter, folder / "images" / f"{kept.stem}.png", kept, rng))
        with np.load(kept) as parts:
            masks = np.unpackbits(parts["masks"], axis=-1, count=tiny_policy.FRAME).astype(bool)
            rows = zip(parts["texts"].tolist(), parts["shapes"].tolist(), masks, parts["ious"].tolist(), strict=True)
            found.append([Seen(*row) for row in rows])
    return found


async def _segment(
    example: Example, scene: shapes.Scene, segmenter: Any, image: Path, kept: Path, rng: np.random.Generator
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, "PNG")
    image.write_bytes(buffer.getvalue())
    numbers = [number for number in range(len(scene.shapes)) for _ in LEVELS]
    levels = LEVELS * len(scene.shapes)
    texts = [
        answer_text(example, n, blur=True, rng=rng, shrink=level) for n, level in zip(numbers, levels, strict=True)
    ]
    prompts = [prompt_of(text) for text in texts]
    predictions = await get_client(segmenter).segment(image, sha256(buffer.getvalue()).hexdigest(), prompts)
    ious = [_iou(p.mask, scene.masks[n]) for p, n in zip(predictions, numbers, strict=True)]
    size = (tiny_policy.FRAME,) * 2
    small = [Image.fromarray(p.mask).resize(size, Image.Resampling.NEAREST) for p in predictions]
    np.savez(kept, texts=texts, shapes=numbers, ious=ious, masks=np.packbits(np.array(small), axis=-1))


def prompt_of(text: str) -> Prompt:
    """The prompt of an answer that the lesson teaches, original frame."""
    answer = parse_answer(text)
    assert isinstance(answer, Answer), text
    target, original_wh, policy_wh = answer.objects_policy[0], (shapes.IMAGE,) * 2, (tiny_policy.FRAME,) * 2
    box = boxes_from_policy(np.array(target.box), original_wh, policy_wh, "absolute")
    points = points_from_policy(np.array(target.points), original_wh, policy_wh, "absolute")
    return Prompt(tuple(box.tolist()), tuple(map(tuple, points.tolist())), target.labels)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def tinted(example: Example, mask: np.ndarray | None) -> Image.Image:
    """The example's image with a mask, FRAMExFRAME bool, drawn on it as `scoring.refinement.picture` draws it."""
    shown = Image.fromarray(example.image)
    if mask is not None:
        draw(shown, shown.size, masks=[(mask, COLOUR)])
    return shown


def outline_mask(shape: shapes.Shape) -> np.ndarray:
    """A shape's mask in the policy frame, FRAMExFRAME bool."""
    canvas = Image.new("1", (tiny_policy.FRAME,) * 2)
    ImageDraw.Draw(canvas).polygon([(x * SCALE, y * SCALE) for x, y in shape.outline()], fill=1)
    return np.array(canvas)


def drawn_mask(example: Example, rng: np.random.Generator) -> np.ndarray:
    """A mask like SAM's without SAM: the part of a random shape that a random box covers, FRAMExFRAME bool."""
    number = int(rng.integers(len(example.boxes)))
    box, mask = example.boxes[number], outline_mask(example.scene.shapes[number])
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    scale = rng.normal(rng.choice([0.65, 0.85, 1.05]), 0.15, size=4)
    x1, y1, x2, y2 = np.concatenate([centre, centre]) + scale * np.concatenate([-half, half])
    y, x = np.mgrid[: tiny_policy.FRAME, : tiny_policy.FRAME] + 0.5
    return mask & (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)


def mask_targets(example: Example, mask: np.ndarray) -> np.ndarray:
    """[25, 2] int64: bin of the share that the mask covers, and of its IoU with the shape there, else IGNORE."""
    side = tiny_policy.CELL
    shares = mask.reshape(CELLS, side, CELLS, side).mean(axis=(1, 3)).reshape(-1)
    targets = np.stack([np.digitize(shares, COVERS), np.full(CELLS * CELLS, IGNORE)], axis=1)
    for shape in example.scene.shapes:
        outline = outline_mask(shape)
        there = outline.reshape(CELLS, side, CELLS, side).mean(axis=(1, 3)).reshape(-1) > 0.1
        targets[there, 1] = np.digitize(_iou(mask, outline), FITS)
    return targets


@dataclass(frozen=True, eq=False)
class Turn:
    """A turn: the answer whose mask is on the image, the policy's response, and whether the lesson teaches it."""

    shown: Seen | None
    text: str
    taught: bool = True


def dialogue(
    example: Example, seen: list[Seen], target: int, count: int, rng: np.random.Generator, wrong: float = 0.2
) -> list[Turn]:
    """Two or three (`count`) turns about shape `target`.

    The first answer is about a wrong shape in a share `wrong` of the dialogues where there is one, and is not taught
    then; nor is a first answer that is better than the policy's own. Of three turns, the second one is a correction.
    """
    others = [s for s in seen if s.shape != target]
    own = [s for s in seen if s.shape == target]
    if others and rng.random() < wrong:
        shown, taught = others[rng.integers(len(others))], False
    else:
        number = int(rng.integers(len(own) if count == 2 else LEVELS.count(FIRST)))
        shown, taught = own[number], LEVELS[number] == FIRST
    turns = [Turn(None, shown.text, taught)]
    if count == 3:
        mended = own[LEVELS.index(ROUGH)]
        turns, shown = [*turns, Turn(shown, mended.text)], mended
    return [*turns, Turn(shown, reply_to(shown, example, target, rng))]


def reply_to(shown: Seen, example: Example, target: int, rng: np.random.Generator) -> str:
    """`done` after a good mask, else a rough correction; in a share NOISE of the masks of the shape the opposite."""
    if shown.shape == target and (shown.iou > GOOD) != (rng.random() < NOISE):
        return done_text(example, target)
    return answer_text(example, target, blur=True, rng=rng, shrink=ROUGH)


def done_text(example: Example, target: int) -> str:
    """The turn that keeps the mask."""
    return f"<think>{reasoning(example, target)}</think><answer>{DONE}</answer>"
