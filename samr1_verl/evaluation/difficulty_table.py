"""The difficulty of a file's rows as tables and a histogram on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from samr1_verl.evaluation import histogram


def show_difficulty(results: Mapping[str, Any], success_rate: np.ndarray, console: Console) -> None:
    """Print success rates by tier, the expected share of groups with a gradient, a histogram, and the rows left out.

    Args:
        results: as `difficulty.results_of` returns them, with `kept`.
        success_rate: [rows] float64 in [0, 1].
    """
    title = f"{results['rows']:,} rows, {results['samples']} sampled answers each"
    table = _table(title, "mask IoU above", "success rate", "rows: never", "sometimes", "always")
    for tier, shares in results["tiers"].items():
        table.add_row(tier, *(f"{shares[name]:.3f}" for name in ("success_rate", "never", "sometimes", "always")))
    console.print(table)
    console.print(
        f"groups of {results['group']} with a gradient, expected: {results['gradient_chance']:.1%}; "
        f"mean reward {results['mean_reward']:.3f}"
    )
    if results["unusable"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in results["unusable"].items())
        console.print(f"unusable answers, counted as empty masks: {reasons}")
    console.print("rows by success rate:", histogram.text_of(success_rate.tolist(), ()))
    if (kept := results["kept"]) is not None:
        console.print(
            f"{kept['rows']:,} of {results['rows']:,} rows kept, with a success rate of {kept['low']:g} to "
            f"{kept['high']:g}; groups with a gradient among them, expected: {kept['gradient_chance']:.1%}"
        )
        console.print(_left_out(kept["sources"]))


def _left_out(sources: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table("rows by data source", "data source", "kept", "left out: too hard", "too easy")
    for source, counts in sources.items():
        table.add_row(escape(source), *(f"{counts[name]:,}" for name in ("kept", "below", "above")))
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table
