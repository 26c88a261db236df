"""A histogram of shares in [0, 1] as text and as a picture, with the thresholds of a reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

BINS = 20  # of equal width; the paper's thresholds 0.5, 0.7 and 0.8 are edges
WIDTH = 40  # characters of the longest bar


def text_of(values: Sequence[float], thresholds: Sequence[float]) -> Table:
    """One line per bin, from the highest. A bin holds its lower edge but not its upper one; the last one holds 1."""
    counts, edges = np.histogram(values, BINS, (0, 1))
    table = Table(box=None, show_header=False)
    for count, low, high in zip(counts[::-1], edges[-2::-1], edges[:0:-1], strict=True):
        passed = [f"threshold {value:g}" for value in thresholds if low - 1e-9 <= value < high - 1e-9]
        bar = "█" * int(np.ceil(WIDTH * count / counts.max()))
        table.add_row(f"{low:.2f} to {high:.2f}", f"{count:,}", bar, f"[dim]{', '.join(passed)}")
    return table


def picture(values: Sequence[float], thresholds: Sequence[float], title: str, path: Path) -> None:
    """Write the histogram as a PNG: a line at each threshold, with the share of the values above it."""
    from matplotlib.figure import Figure  # in the extra `report`

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(values, bins=BINS, range=(0, 1), color="#4878d0", edgecolor="white")
    for threshold in thresholds:
        above = float(np.mean(np.asarray(values) > threshold))
        axes.axvline(threshold, color="#d65f5f", label=f"above {threshold:g}: {above:.1%} of the rows")
    axes.set(title=title, xlabel="mask IoU", ylabel="rows", xlim=(0, 1))
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120, format="png")
