"""The results of a ceiling's measurement: figures, data files with the column, and pictures."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from samr1_verl.evaluation import histogram
from samr1_verl.evaluation.ceiling import Ceiling, Reached
from samr1_verl.evaluation.rows import read_rows
from samr1_verl.geometry.drawing import COLOURS, draw
from samr1_verl.geometry.images import open_image
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.rows.files import complete
from samr1_verl.rows.record import DataError
from samr1_verl.rows.show import TILE, captioned, sheet_of
from samr1_verl.scoring.sample import Reader, Sample

HISTOGRAM, LOWEST = "histogram.png", "lowest.png"
DRAWN = 12  # rows on the sheet of the lowest


def results_of(reached: Sequence[Reached], measured: Ceiling, keep_above: float | None) -> dict[str, Any]:
    """The content of results.json.

    Its keys: `rows`, `giou`, `ciou`, `mean_reward`; `above`, the share of the rows with an IoU
    above each threshold; `unusable`, the number of rows that no usable answer can name, by reason; `keep_above`, and
    with it `kept` and `left_out`, the latter by data source; `settings`.
    """
    intersection, union = (sum(one.counts[name] for one in reached) for name in ("intersection", "union"))
    ious = np.array([one.iou for one in reached])
    reasons = Counter(one.reason for one in reached if one.reason not in (None, "no_target"))
    results = {
        "rows": len(reached),
        "giou": float(ious.mean()),
        "ciou": intersection / union if union else 0.0,
        "mean_reward": float(np.mean([one.reward for one in reached])),
        "above": {f"{value:g}": float(np.mean(ious > value)) for value in measured.reward.thresholds},
        "unusable": dict(reasons.most_common()),
        "keep_above": keep_above,
    }
    if keep_above is not None:
        left_out = Counter(one.data_source for one in reached if one.iou <= keep_above)
        results |= {"kept": int((ious > keep_above).sum()), "left_out": dict(left_out.most_common())}
    return results | {"settings": measured.fingerprint()}


def rows_above(reached: Sequence[Reached], bound: float) -> np.ndarray:
    """[rows] bool: the rows with an IoU above the bound. Raises DataError where there is none."""
    ious = np.array([one.iou for one in reached])
    if not (ious > bound).any():
        raise DataError(
            "no_row_left",
            f"--keep-above {bound:g}",
            f"no row is left: the ceilings of {len(ious)} rows are {ious.min():.3g} to {ious.max():.3g}. Set a lower "
            "bound: the results are stored, so nothing is measured again",
        )
    return ious > bound


def store_pictures(reached: Sequence[Reached], measured: Ceiling, folder: Path) -> list[Path]:
    """Draw the histogram, and the rows with the lowest IoU: predicted mask in red, true mask in green, prompts in blue.

    Raises:
        ImageError, SegmenterError: an image or the segmenter fails.
    """
    title = f"Ceiling of {measured.file.name}: mask IoU with true prompts"
    with complete(folder / HISTOGRAM) as part:
        histogram.picture([one.iou for one in reached], measured.reward.thresholds, title, part)
    lowest = sorted(reached, key=lambda one: (one.iou, one.row))[:DRAWN]
    samples = asyncio.run(_samples(lowest, measured))
    tiles = [_tile(sample, one) for sample, one in zip(samples, lowest, strict=True)]
    with complete(folder / LOWEST) as part:
        sheet_of(tiles).save(part, "PNG")
    return [folder / HISTOGRAM, folder / LOWEST]


async def _samples(chosen: Sequence[Reached], measured: Ceiling) -> list[Sample]:
    records = read_rows(measured.file, measured.limit)
    reader = Reader(measured.config.segmenter, measured.config.caps)
    items = [measured.item(records[one.row], one.row) for one in chosen]
    asked = (reader.sample(item, one.response, {}) for item, one in zip(items, chosen, strict=True))
    return list(await asyncio.gather(*asked))


def _tile(sample: Sample, reached: Reached) -> Image.Image:
    shown = ImageOps.contain(open_image(sample.image), (TILE, TILE))
    masks = [(sample.mask, COLOURS[0]), *([(sample.truth, COLOURS[2])] if sample.truth else [])]
    draw(
        shown,
        sample.size[::-1],
        masks=[(decode_rle(counts, sample.size), colour) for counts, colour in masks],
        boxes=[(shape.box, COLOURS[1]) for shape in sample.shapes if shape.box is not None],
        points=[pair for shape in sample.shapes for pair in zip(shape.points, shape.labels, strict=True)],
    )
    why = f" ({reached.reason})" if reached.reason else ""
    return captioned(shown, f"row {reached.row}, IoU {reached.iou:.3f}{why}: {sample.sentence}")


def show(results: dict[str, Any], reached: Sequence[Reached], measured: Ceiling, console: Console) -> None:
    """Print the figures of a perfect policy, the histogram, and the rows that were left out."""
    console.print(f"a perfect policy on {results['rows']:,} rows:")
    table = Table(box=None, show_header=False)
    for name, value in (
        ("gIoU", f"{results['giou']:.3f}"),
        ("cIoU", f"{results['ciou']:.3f}"),
        ("mean reward", f"{results['mean_reward']:.3f}"),
        *((f"rows above {threshold}", f"{share:.1%}") for threshold, share in results["above"].items()),
        *((f"no usable answer: {reason}", f"{count:,} rows") for reason, count in results["unusable"].items()),
    ):
        table.add_row(name, value)
    console.print(table)
    ious, thresholds = [one.iou for one in reached], measured.reward.thresholds
    console.print("rows by mask IoU with true prompts:", histogram.text_of(ious, thresholds))
    if results["keep_above"] is not None:
        left_out = ", ".join(f"{escape(name)} {count:,}" for name, count in results["left_out"].items()) or "none"
        console.print(f"kept: {results['kept']:,} rows above {results['keep_above']:g}; left out: {left_out}")
