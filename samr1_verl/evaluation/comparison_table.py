"""The comparison of two evaluations as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_NAMES = {"giou": "gIoU", "ciou": "cIoU"}
_SENTENCE = 60  # maximum number of characters of a sentence


def show_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """Print the differences with their intervals, and the rows that changed most.

    Args:
        comparison: as `compare.compare` returns it.
    """
    level = comparison["test"]["level"]
    title = f"{comparison['rows']:,} sentences about {comparison['images']:,} images, protocol {comparison['protocol']}"
    table = Table(title=title)
    for column in ("", "A", "B", "B - A", f"{1 - level:.0%} interval", "p", "difference"):
        table.add_column(column, justify="right" if column else "left")
    for name, shown in _NAMES.items():
        figure = comparison[name]
        interval, p = figure["interval"], figure["p"]
        table.add_row(
            shown,
            *(f"{figure[side]:.4f}" for side in "ab"),
            f"{figure['difference']:+.4f}",
            "one image" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}",
            "" if p is None else f"{p:.4f}",
            "[bold]found" if figure["found"] else "not found",
        )
    console.print(table)
    console.print(
        f"rows: {comparison['better']:,} better, {comparison['worse']:,} worse, {comparison['alike']:,} alike\n"
        f"found: the interval leaves out 0, and p is at most {level:.0%}. Of equal policies, at most {2 * level:.0%} "
        "of the comparisons find a difference"
    )
    if comparison["changed"]:
        console.print(_rows(comparison["changed"]))


def _rows(changed: list[Mapping[str, Any]]) -> Table:
    table = Table(title="Rows that changed most")
    for column in ("row", "A", "B", "B - A"):
        table.add_column(column, justify="right")
    table.add_column("sentence")
    for row in changed:
        sides = (f"{row[side]:.3f}" + ("*" if row[f"reason_{side}"] is not None else "") for side in "ab")
        sentence = row["sentence"]
        short = sentence if len(sentence) <= _SENTENCE else f"{sentence[: _SENTENCE - 1]}…"
        table.add_row(str(row["row"]), *sides, f"{row['change']:+.3f}", escape(short))
    if any(row["reason_a"] or row["reason_b"] for row in changed):
        table.caption = "* unusable answer"
    return table
