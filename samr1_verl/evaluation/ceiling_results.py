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

from samr1_verl.config import reward_config
from samr1_verl.evaluation import histogram
from samr1_verl.evaluation.ceiling import Ceiling, Reached
from samr1_verl.evaluation.rows import read_rows
from samr1_verl.geometry.drawing import COLOURS, draw
from samr1_verl.geometry.images import open_image
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.policies.inference_config import InferenceConfig
from samr1_verl.rows.files import complete
from samr1_verl.rows.measured import write_measured
from samr1_verl.rows.show import TILE, captioned, sheet_of
from samr1_verl.scoring.sample import Reader, Sample

ROWS, KEPT = "rows.parquet", "kept.parquet"
HISTOGRAM, LOWEST = "histogram.png", "lowest.png"
DRAWN = 12  # rows on the sheet of the lowest
SAM_R1 = (0.5, 0.7, 0.8)  # thresholds of the paper's reward


def thresholds_of(config: InferenceConfig) -> tuple[float, ...]:
    """The mask IoUs of the reward's tiers, ascending; of a reward without tiers: SAM-R1's."""
    tiers = reward_config(config.reward.get("reward_kwargs", {}).get("reward")).tiers
    return tuple(sorted(threshold for threshold, _ in tiers)) if tiers else SAM_R1


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
        "above": {f"{value:g}": float(np.mean(ious > value)) for value in thresholds_of(measured.config)},
        "unusable": dict(reasons.most_common()),
        "keep_above": keep_above,
    }
    if keep_above is not None:
        left_out = Counter(one.data_source for one in reached if one.iou <= keep_above)
        results |= {"kept": int((ious > keep_above).sum()), "left_out": dict(left_out.most_common())}
    return results | {"settings": measured.fingerprint()}


def store_rows(reached: Sequence[Reached], file: Path, folder: Path, keep_above: float | None) -> list[Path]:
    """Write the data files with the column `ceiling`; rows beyond the limit of the measurement are not written.

    Returns:
        The paths of all rows' file, and of the rows above `keep_above` where it is set.

    Raises:
        DataError: no row is above `keep_above`.
    """
    ious = np.array([one.iou for one in reached])
    write_measured(file, folder / ROWS, {"ceiling": ious})
    if keep_above is None:
        return [folder / ROWS]
    write_measured(file, folder / KEPT, {"ceiling": ious}, ious > keep_above)
    return [folder / ROWS, folder / KEPT]


def store_pictures(reached: Sequence[Reached], measured: Ceiling, folder: Path) -> list[Path]:
    """Draw the histogram, and the rows with the lowest IoU: predicted mask in red, true mask in green, prompts in blue.

    Raises:
        ImageError, SegmenterError: an image or the segmenter fails.
    """
    title = f"Ceiling of {measured.file.name}: mask IoU with true prompts"
    with complete(folder / HISTOGRAM) as part:
        histogram.picture([one.iou for one in reached], thresholds_of(measured.config), title, part)
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
    ious, thresholds = [one.iou for one in reached], thresholds_of(measured.config)
    console.print("rows by mask IoU with true prompts:", histogram.text_of(ious, thresholds))
    if results["keep_above"] is not None:
        left_out = ", ".join(f"{escape(name)} {count:,}" for name, count in results["left_out"].items()) or "none"
        console.print(f"kept: {results['kept']:,} rows above {results['keep_above']:g}; left out: {left_out}")
