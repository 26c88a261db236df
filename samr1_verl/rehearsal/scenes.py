"""Drawn scenes of photograph size with exact masks, boxes and points: rows for a recipe whose files are not here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import box_of, encode_rle, inscribed_points
from samr1_verl.rows.record import Record, write_records

WIDTH, HEIGHT = 640, 480  # the usual size of COCO's photographs
COLOURS = {"red": (200, 50, 40), "green": (60, 160, 70), "blue": (50, 80, 190), "yellow": (220, 200, 60)}
KINDS = ("ellipse", "rectangle")
PLACES = ("on the left", "in the middle", "on the right")


def write_scenes(folder: Path, split: str, rows: int, objects: int, seed: int) -> Path:
    """Write `rows` images below `folder` and their rows to `folder`/`split`.parquet; returns the file's path.

    Args:
        objects: maximum number of objects that a sentence describes.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    file = folder / f"{split}.parquet"
    write_records(file, _records(folder, split, rows, objects, seed))
    return file


def _records(folder: Path, split: str, rows: int, objects: int, seed: int) -> Iterator[Record]:
    for index in range(rows):
        rng = np.random.default_rng([seed, index, sum(map(ord, split))])
        count = int(rng.integers(1, objects + 1))
        pixels, masks, sentence, kind = _draw(rng, count)
        name = f"images/{split}_{index:04d}.png"
        Image.fromarray(pixels).save(folder / name)
        yield Record(
            data_source="rehearsal",
            sentence=sentence,
            image=name,
            sha256=sha256_of(folder / name),
            height=HEIGHT,
            width=WIDTH,
            masks=[encode_rle(mask) for mask in masks],
            boxes=[box_of(mask) for mask in masks],
            points=[inscribed_points(mask) for mask in masks],
            category=kind,
            source={"split": split, "scene": str(index)},
        )


def _draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[np.ndarray], str, str]:
    """An image, HxWx3 uint8, the masks of its objects, HxW bool, and the sentence and kind that describe them."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    slope = rng.uniform(-0.15, 0.15, size=(2, 3))
    image = 128 + slope[0] * (x[..., None] - WIDTH / 2) + slope[1] * (y[..., None] - HEIGHT / 2)
    colour = str(rng.choice(list(COLOURS)))
    kind = str(rng.choice(KINDS))
    places = sorted(rng.choice(len(PLACES), size=count, replace=False).tolist())
    masks = []
    for place in places:
        centre = ((place + 0.5) * WIDTH / len(PLACES) + rng.uniform(-20, 20), HEIGHT / 2 + rng.uniform(-60, 60))
        half = (rng.uniform(50, 85), rng.uniform(60, 150))
        across, down = (x - centre[0]) / half[0], (y - centre[1]) / half[1]
        mask = across**2 + down**2 <= 1 if kind == "ellipse" else (abs(across) <= 1) & (abs(down) <= 1)
        image[mask] = COLOURS[colour]
        masks.append(mask)
    image += rng.normal(0, 6, size=(HEIGHT, WIDTH, 3))
    where = " and ".join(PLACES[place] for place in places)
    sentence = f"the {colour} {kind}{'s' if count > 1 else ''} {where}"
    return image.round().clip(0, 255).astype(np.uint8), masks, sentence, kind
