"""The results of an evaluation as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

GROUPS = 20  # maximum number of groups printed per grouping; results.json has all


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print the figures by the chosen protocol, overall and per group, and the unusable answers per reason.

    Args:
        results: as `run.results_of` returns them.
    """
    protocol = results["protocol"]
    table = Table(title=f"{results['rows']:,} sentences about {results['images']:,} images, protocol {protocol}")
    for column in ("", "sentences", "gIoU", "cIoU", "format"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("[bold]all", *_cells(results, protocol))
    table.add_row("  95 % interval", "", _interval(results["giou_ci"]), _interval(results["ciou_ci"]), "")
    for grouping, groups in results["tables"].items():
        if len(groups) == 1:
            continue
        table.add_section()
        for name, group in list(groups.items())[:GROUPS]:
            table.add_row(f"{grouping} {escape(name) or '—'}", *_cells(group, protocol))
        if len(groups) > GROUPS:
            table.add_row(f"{len(groups) - GROUPS} more in results.json")
    console.print(table)
    if results["unusable"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in results["unusable"].items())
        console.print(f"unusable answers, counted as empty masks: {reasons}")


def show_curve(curve: Sequence[Mapping[str, Any]], protocol: str, console: Console) -> None:
    """Print figures and cost against the number of answers a row.

    Args:
        curve: as `poll.curve` returns it.
    """
    table = Table(title=f"N answers a row, combined by vote, protocol {protocol}")
    for column in ("N", "gIoU", "95 % interval", "cIoU", "answers", "tokens", "policy s", "SAM s"):
        table.add_column(column, justify="right", no_wrap=True)
    for point in curve:
        figures, cost = point[protocol], point["cost"]
        table.add_row(
            str(point["votes"]),
            f"{figures['giou']:.3f}",
            _interval(figures["giou_ci"]),
            f"{figures['ciou']:.3f}",
            f"{cost['answers']:,}",
            "unknown" if cost["tokens"] is None else f"{cost['tokens']:,}",
            f"{cost['policy_seconds']:,.1f}",
            f"{cost['segmenter_seconds']:,.1f}",
        )
    console.print(table)


def _cells(group: Mapping[str, Any], protocol: str) -> list[str]:
    ious = group[protocol]
    return [f"{group['rows']:,}", f"{ious['giou']:.3f}", f"{ious['ciou']:.3f}", f"{group['format_rate']:.3f}"]


def _interval(interval: list[float] | None) -> str:
    return "one image" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
