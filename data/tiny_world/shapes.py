"""Draw the tiny world: scenes of shapes on photographed textures, sentences that name one of them, and exact masks.

    python data/tiny_world/shapes.py --out data/shapes

It writes images/*.png and one parquet file per split (train, val, test). Every split has its own seed, so that a test
scene is never a training scene. The backgrounds are the photographs of brick, grass and gravel in scikit-image.

Everything is drawn in the original frame, IMAGE x IMAGE pixels. A shape's mask holds the pixels that its outline covers
by at least half. Shapes never touch, so that no shape hides another.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw
from rich.progress import track

from samr1_verl.geometry.masks import box_of, encode_rle, inscribed_points
from samr1_verl.rows.record import Record, write_records

IMAGE = 240  # pixels per side
SUPERSAMPLE = 4
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 210, 40),
    "purple": (148, 60, 190),
    "white": (240, 240, 240),
}
KINDS = ("circle", "square", "triangle", "cross")
SPLITS = {"train": 0, "val": 1, "test": 2}  # added to three times the seed
SENTENCES = {"train": 4, "val": 1, "test": 2}  # per scene


@dataclass(frozen=True)
class Shape:
    """One object: `centre` (x, y) and `radius` of its circumscribed circle, in pixels of the original frame."""

    kind: str
    colour: str
    centre: tuple[float, float]
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    def outline(self) -> list[tuple[float, float]]:
        """Corners [(x, y), …] of the outline; 64 of them for a circle."""
        corners = {
            "circle": [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 64, endpoint=False)],
            "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
            "triangle": [(0, -0.95), (0.95, 0.8), (-0.95, 0.8)],
            "cross": [(x * s, y * t) for x, y, s, t in _CROSS],
        }[self.kind]
        (x, y), r = self.centre, self.radius
        return [(x + r * dx, y + r * dy) for dx, dy in corners]


_ARM = 0.34
_CROSS = [
    (_ARM, 1, -1, -1), (_ARM, 1, 1, -1), (_ARM, _ARM, 1, -1), (1, _ARM, 1, -1),
    (1, _ARM, 1, 1), (_ARM, _ARM, 1, 1), (_ARM, 1, 1, 1), (_ARM, 1, -1, 1),
    (_ARM, _ARM, -1, 1), (1, _ARM, -1, 1), (1, _ARM, -1, -1), (_ARM, _ARM, -1, -1),
]  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """An image (HxWx3 uint8), its shapes, and a mask (HxW bool) per shape."""

    image: np.ndarray
    shapes: tuple[Shape, ...]
    masks: tuple[np.ndarray, ...]


@functools.cache
def _textures() -> tuple[np.ndarray, ...]:
    """The photographs that backgrounds are cut from, HxW uint8."""
    from skimage import data

    return tuple(getattr(data, name)() for name in ("brick", "grass", "gravel"))


def draw_background(rng: np.random.Generator) -> np.ndarray:
    """A crop of a photographed texture, tinted and dimmed, HxWx3 uint8."""
    texture = _textures()[rng.integers(len(_textures()))]
    side = int(rng.integers(IMAGE, min(texture.shape)))
    y, x = (int(rng.integers(0, extent - side + 1)) for extent in texture.shape)
    crop = Image.fromarray(texture[y : y + side, x : x + side]).resize((IMAGE, IMAGE))
    grey = np.asarray(crop, dtype=np.float32)[..., None] / 255
    tint = rng.uniform(60, 130, size=3).astype(np.float32)
    return np.clip(tint * (0.55 + 0.9 * grey), 0, 255).astype(np.uint8)


def draw_scene(rng: np.random.Generator, fewest: int = 2, most: int = 4) -> Scene:
    """A scene of `fewest` to `most` shapes that do not touch. Two shapes may share colour or kind, rarely both."""
    shapes: list[Shape] = []
    wanted = int(rng.integers(fewest, most + 1))
    while len(shapes) < wanted:
        radius = float(rng.uniform(20, 46))
        x, y = (float(v) for v in rng.uniform(radius + 3, IMAGE - radius - 3, size=2))
        if any(math.hypot(x - s.centre[0], y - s.centre[1]) < radius + s.radius + 6 for s in shapes):
            continue
        kind, colour = str(rng.choice(KINDS)), str(rng.choice(list(COLOURS)))
        if len(shapes) and rng.random() > 0.15 and any(s.name == f"{colour} {kind}" for s in shapes):
            continue
        shapes.append(Shape(kind, colour, (x, y), radius))
    image = draw_background(rng).astype(np.float32)
    coverages = [_coverage(shape) for shape in shapes]
    for shape, coverage in zip(shapes, coverages, strict=True):
        image += coverage[..., None] * (np.array(COLOURS[shape.colour], dtype=np.float32) - image)
    return Scene(image.round().astype(np.uint8), tuple(shapes), tuple(c >= 0.5 for c in coverages))


def _coverage(shape: Shape) -> np.ndarray:
    """Share of each pixel that the outline covers, HxW float32 in [0, 1]."""
    left, top = (math.floor(c - shape.radius) for c in shape.centre)
    side = math.ceil(2 * shape.radius) + 2
    canvas = Image.new("L", (side * SUPERSAMPLE,) * 2)
    outline = [((x - left) * SUPERSAMPLE, (y - top) * SUPERSAMPLE) for x, y in shape.outline()]
    ImageDraw.Draw(canvas).polygon(outline, fill=255)
    window = np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255
    coverage = np.zeros((IMAGE, IMAGE), dtype=np.float32)
    bottom, right = min(top + side, IMAGE), min(left + side, IMAGE)
    coverage[top:bottom, left:right] = window[: bottom - top, : right - left]
    return coverage


DIRECT = ("the {}", "find the {}", "segment the {}", "where is the {}?", "show me the {}.", "please mark the {}")
SUPERLATIVES = {
    "largest": lambda s: -s.radius,
    "smallest": lambda s: s.radius,
    "leftmost": lambda s: s.centre[0],
    "rightmost": lambda s: -s.centre[0],
    "highest": lambda s: s.centre[1],
    "lowest": lambda s: -s.centre[1],
}
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis, sign of (shape - other)
MARGIN = 8.0  # pixels; a sentence uses a comparison only where the difference is larger


def references(scene: Scene) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Every phrase that means exactly one shape of the scene, with the shape's index: by name, and by reasoning."""
    shapes = scene.shapes
    named = [(s.name, i) for i, s in enumerate(shapes) if sum(o.name == s.name for o in shapes) == 1]
    reasoned: list[tuple[str, int]] = []
    for kind in ("shape", *KINDS):
        members = [i for i, s in enumerate(shapes) if kind in ("shape", s.kind)]
        if kind != "shape" and len(members) == 1:
            reasoned.append((f"only {kind}", members[0]))
        for word, rank in SUPERLATIVES.items():
            ranked = sorted(members, key=lambda i: rank(shapes[i]))
            if len(ranked) > 1 and rank(shapes[ranked[1]]) - rank(shapes[ranked[0]]) > MARGIN:
                reasoned.append((f"{word} {kind}", ranked[0]))
    for other_name, other in named:
        for word, (axis, sign) in RELATIONS.items():
            offsets = [sign * (s.centre[axis] - shapes[other].centre[axis]) for s in shapes]
            beyond = [i for i, offset in enumerate(offsets) if i != other and offset > -MARGIN]
            if len(beyond) == 1 and offsets[beyond[0]] > MARGIN:
                reasoned.append((f"shape {word} the {other_name}", beyond[0]))
    return named, reasoned


def ask(scene: Scene, rng: np.random.Generator, reasoning: float = 0.3) -> tuple[str, int]:
    """A sentence about a shape, and the shape's index. A share `reasoning` of the sentences needs reasoning."""
    named, reasoned = references(scene)
    phrases = reasoned if reasoned and (not named or rng.random() < reasoning) else named
    phrase, index = phrases[rng.integers(len(phrases))]
    return str(rng.choice(DIRECT)).format(phrase), index


def scene(split: str, seed: int, index: int) -> tuple[Scene, np.random.Generator]:
    """Scene number `index` of a split, and the random generator for its sentences."""
    rng = np.random.default_rng([3 * seed + SPLITS[split], index])
    return draw_scene(rng), rng


def scenes(split: str, seed: int) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Endless scenes of a split, without the scenes in which no sentence means exactly one shape."""
    candidates = (scene(split, seed, index) for index in itertools.count())
    return ((candidate, rng) for candidate, rng in candidates if any(references(candidate)))


def records(folder: Path, split: str, count: int, sentences: int, seed: int) -> Iterator[Record]:
    """Write `count` images of a split below `folder` and yield `sentences` rows per image."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index, (drawn, rng) in enumerate(itertools.islice(scenes(split, seed), count)):
        buffer = io.BytesIO()
        Image.fromarray(drawn.image).save(buffer, "PNG")
        name = f"images/{split}_{index:05d}.png"
        (folder / name).write_bytes(buffer.getvalue())
        digest = sha256(buffer.getvalue()).hexdigest()
        for number in range(sentences):
            sentence, target = ask(drawn, rng)
            mask = drawn.masks[target]
            yield Record(
                data_source="shapes",
                sentence=sentence,
                image=name,
                sha256=digest,
                height=IMAGE,
                width=IMAGE,
                masks=[encode_rle(mask)],
                boxes=[box_of(mask)],
                points=[inscribed_points(mask)],
                category=drawn.shapes[target].kind,
                source={"split": split, "scene": str(index), "sentence": str(number), "seed": str(seed)},
            )


def main(
    out: Annotated[Path, typer.Option(help="folder for images/ and the parquet files")] = Path("data/shapes"),
    train: Annotated[int, typer.Option(min=1, help="training scenes, four sentences per scene")] = 128,
    val: Annotated[int, typer.Option(min=1, help="validation scenes, one sentence per scene")] = 32,
    test: Annotated[int, typer.Option(min=1, help="held-out test scenes, two sentences per scene")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="seed of all scenes")] = 0,
) -> None:
    """Draw the three splits of the tiny world."""
    for split, count in (("train", train), ("val", val), ("test", test)):
        rows = records(out, split, count, SENTENCES[split], seed)
        written = write_records(out / f"{split}.parquet", track(rows, f"{split:>5}", total=count * SENTENCES[split]))
        typer.echo(f"{out / f'{split}.parquet'}: {written} rows, {count} scenes")


if __name__ == "__main__":
    typer.run(main)
