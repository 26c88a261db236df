"""False alarms and power of `samr1 compare`, on simulated pairs of evaluations.

    python benchmarks/compare_power.py                 200 pairs per line, 1,000 rows about 500 images
    python benchmarks/compare_power.py --pairs 1000    narrower limits of each share

An answer hits its object or misses it. The chance of a hit belongs to the image, so the two sentences about an image
are correlated, and so are the policies. Areas of objects are log-normal: few large objects decide cIoU. A share of the
answers is the same for both policies. For a true difference, the other answers of policy B hit more often, so that its
gIoU is higher by that difference on average. A false alarm is a pair of equal policies for which gIoU or cIoU is found
to differ. Power is the share of pairs with a true difference for which gIoU is found to differ and B is the better one.
The last line is one JSON object.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

from samr1_verl.evaluation.compare import LEVEL, Sums, difference

ALIKE = (0.0, 0.5, 0.8, 0.9)  # shares of answers that are the same for both policies
SENTENCES = 2  # per image
MISS, HIT = (0.5, 8.0), (8.0, 2.0)  # parameters of the beta distributions of an IoU
MEAN_GAP = HIT[0] / sum(HIT) - MISS[0] / sum(MISS)  # of a hit's IoU and a miss's IoU


def simulate(rows: int, alike: float, true_difference: float, draw: np.random.Generator) -> list[dict[str, Sums]]:
    """The sums of policies A and B over the images, by figure.

    Args:
        rows: number of sentences; a multiple of SENTENCES.
        alike: share of answers that both policies give.
        true_difference: expected gIoU of B minus that of A.
    """
    images = rows // SENTENCES
    image = np.repeat(np.arange(images), SENTENCES)
    chance = np.repeat(draw.uniform(0.25, 0.7, images), SENTENCES)
    area = np.exp(draw.normal(9.0, 1.3, rows))
    iou_a = _ious(chance, draw)
    other = _ious(chance + true_difference / (1 - alike) / MEAN_GAP, draw)
    iou_b = np.where(draw.random(rows) < alike, iou_a, other)
    return [_sums(iou, area, image, images) for iou in (iou_a, iou_b)]


def _ious(chance: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    assert chance.max() <= 1, "the difference is too large for this share of equal answers"
    return np.where(draw.random(len(chance)) < chance, draw.beta(*HIT, len(chance)), draw.beta(*MISS, len(chance)))


def _sums(iou: np.ndarray, area: np.ndarray, image: np.ndarray, images: int) -> dict[str, Sums]:
    """Predicted masks are as large as true ones, so that the IoU decides the intersection."""
    intersection = np.round(2 * area * iou / (1 + iou))
    columns = {"giou": (iou, np.ones_like(iou)), "ciou": (intersection, 2 * np.round(area) - intersection)}
    return {name: Sums(*(np.bincount(image, column, images) for column in both)) for name, both in columns.items()}


def line(pairs: int, rows: int, alike: float, true_difference: float, resamples: int, seed: int) -> dict[str, Any]:
    """Shares of simulated pairs by what was found: in gIoU, in cIoU, in either, and B as the better one in gIoU."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(pairs):
        a, b = simulate(rows, alike, true_difference, draw)
        giou, ciou = (difference(a[name], b[name], number, resamples) for name in ("giou", "ciou"))
        found.append((giou.found, ciou.found, giou.found or ciou.found, giou.found and giou.difference > 0))
    shares = dict(zip(("giou", "ciou", "either", "better"), np.mean(found, axis=0).tolist(), strict=True))
    upper = stats.binomtest(int(np.sum([one[2] for one in found])), pairs).proportion_ci(0.95).high
    return {"alike": alike, "true_difference": true_difference, **shares, "either_at_most": float(upper)}


def main(
    pairs: Annotated[int, typer.Option(min=10, help="simulated pairs per line")] = 200,
    rows: Annotated[int, typer.Option(min=4, help="rows of an evaluation, two per image")] = 1000,
    true_difference: Annotated[float, typer.Option(help="true difference of gIoU in the lines for power")] = 0.02,
    resamples: Annotated[int, typer.Option(min=999, help="resamples and exchanges per figure")] = 1999,
    seed: Annotated[int, typer.Option(help="seed of the simulation")] = 0,
) -> None:
    """Print false alarms and power by the share of equal answers. The last line is one JSON object."""
    table = Table(title=f"{pairs} pairs of evaluations with {rows:,} rows")
    for column in ("true difference", "same answers", "found in gIoU", "in cIoU", "in either", "B is better"):
        table.add_column(column, justify="right")
    lines = []
    for true in (0.0, true_difference):
        for alike in ALIKE:
            lines.append(line(pairs, rows, alike, true, resamples, seed))
            shares = (f"{lines[-1][name]:.1%}" for name in ("giou", "ciou", "either", "better"))
            table.add_row(f"{true:g}", f"{alike:.0%}", *shares)
        table.add_section()
    Console().print(table)
    worst = max(one["either"] for one in lines if one["true_difference"] == 0)
    power = {f"{one['alike']:g}": one["better"] for one in lines if one["true_difference"]}
    typer.echo(
        json.dumps(
            {"pairs": pairs, "rows": rows, "level": LEVEL, "false_alarms": worst, "power": power, "lines": lines}
        )
    )


if __name__ == "__main__":
    typer.run(main)
