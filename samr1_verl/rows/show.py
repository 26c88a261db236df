"""A picture of random rows of a data file, and statistics of all its rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from samr1_verl.geometry.drawing import COLOURS, draw
from samr1_verl.geometry.images import ImageError, open_image
from samr1_verl.geometry.masks import MaskError, coco_rle, decode_rle
from samr1_verl.rows.record import MEASURED, DataError, Record, count_rows, iter_rows, parse_record, resolve_image

TILE, CAPTION, GAP = 360, 52, 8  # pixels
IGNORED = (128, 128, 128)


@dataclass
class Statistics:
    """Values of all rows of a file. Lists have one entry per row; `shares` has one per mask."""

    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of the image's pixels that a mask covers, 0 to 1
    # Values of the measured columns, of the rows that have one.
    measured: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURED})
    ignored: int = 0  # rows with pixels that do not count
    sources: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Count one row. Raises MaskError where a mask does not decode."""
        self.widths.append(record.width)
        self.heights.append(record.height)
        self.characters.append(len(record.sentence))
        self.words.append(len(record.sentence.split()))
        self.objects.append(len(record.masks or record.boxes))
        pixels = record.width * record.height
        size = (record.height, record.width)
        areas = (coco_mask.area(coco_rle(counts, size)) for counts in record.masks)
        self.shares += [int(area) / pixels for area in areas]
        for name, values in self.measured.items():
            if (value := getattr(record, name)) is not None:
                values.append(value)
        self.ignored += record.ignore is not None
        self.sources[record.data_source] += 1
        self.categories[record.category] += 1

    def lines(self) -> list[tuple[str, str]]:
        """Name and value of each statistic."""
        objects = Counter(self.objects)
        return [
            ("rows", f"{len(self.objects):,} ({_most(self.sources, 5)})"),
            ("image width", _spread(self.widths)),
            ("image height", _spread(self.heights)),
            ("sentence, words", _spread(self.words)),
            ("sentence, characters", _spread(self.characters)),
            ("objects per row", ", ".join(f"{number}: {objects[number]:,}" for number in sorted(objects)[:8])),
            ("mask, share of the image", _spread([100 * share for share in self.shares], " %")),
            ("rows with ignored pixels", f"{self.ignored:,}"),
            *((name.replace("_", " "), _spread(values)) for name, values in self.measured.items() if values),
            ("categories", f"{len(self.categories):,} ({_most(self.categories, 8)})"),
        ]


def _spread(values: list, unit: str = "") -> str:
    if not values:
        return "none"
    low, five, half, high, most = np.percentile(values, [0, 5, 50, 95, 100])
    return f"{half:.4g}{unit} (median), {five:.4g} to {high:.4g} (90 %), {low:.4g} to {most:.4g} (all)"


def _most(counter: Counter[str], number: int) -> str:
    return ", ".join(f"{name or '—'} {count:,}" for name, count in counter.most_common(number))


def look(path: Path, rows: int, seed: int) -> tuple[Image.Image, Statistics]:
    """A sheet with `rows` random rows, chosen with `seed`, and the statistics of all rows, in one pass over the file.

    Raises:
        DataError: the file, a row, or the image of a chosen row cannot be read.
    """
    total = count_rows(path)
    chosen = set(np.random.default_rng(seed).choice(total, size=min(rows, total), replace=False).tolist())
    statistics, tiles = Statistics(), []
    for number, row in enumerate(iter_rows(path)):
        record = parse_record(row, path, number)
        try:
            statistics.add(record)
            if number in chosen:
                tiles.append(_tile(record, path, number))
        except (ImageError, MaskError) as error:
            raise DataError(
                "unusable_row", f"{path}: row {number}", f"{error}. samr1 data check lists all such rows"
            ) from error
    return sheet_of(tiles), statistics


def sheet_of(tiles: list[Image.Image]) -> Image.Image:
    """Tiles of `captioned` as one picture."""
    columns = int(np.ceil(np.sqrt(len(tiles))))
    lines = -(-len(tiles) // columns)
    width, height = TILE + GAP, TILE + CAPTION + GAP
    sheet = Image.new("RGB", (columns * width + GAP, lines * height + GAP), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (GAP + index % columns * width, GAP + index // columns * height))
    return sheet


def _tile(record: Record, path: Path, number: int) -> Image.Image:
    """The tile of a row: its image with masks, boxes and points, and its sentence below."""
    image = open_image(resolve_image(record, path))
    shown = image.copy()
    shown.thumbnail((TILE, TILE))
    size = (record.height, record.width)
    painted = [(decode_rle(counts, size), COLOURS[i % len(COLOURS)]) for i, counts in enumerate(record.masks)]
    if record.ignore is not None:
        painted.append((decode_rle(record.ignore, size), IGNORED))
    draw(
        shown,
        (record.width, record.height),
        masks=painted,
        boxes=[(box, COLOURS[i % len(COLOURS)]) for i, box in enumerate(record.boxes)],
        points=[((x, y), 1) for x, y in chain(*record.points)],
    )
    target = "" if record.masks or record.boxes else " (no target)"
    return captioned(shown, f"{number}: {record.sentence}{target}")


def captioned(shown: Image.Image, text: str) -> Image.Image:
    """A tile: a picture of at most TILE x TILE pixels, with a text of up to three lines below."""
    tile = Image.new("RGB", (TILE, TILE + CAPTION), "white")
    tile.paste(shown, ((TILE - shown.width) // 2, TILE - shown.height))
    lines = wrap(text, width=52)[:3]
    ImageDraw.Draw(tile).text((4, TILE + 3), "\n".join(lines), fill="black", font=ImageFont.load_default(13))
    return tile
