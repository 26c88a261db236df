"""Results for people: tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

GROUPS = 20  # of a grouping that are printed; results.json has all


def show(results: Mapping[str, Any], console: Console) -> None:
    """Figures over all rows and by group, by the protocol that was chosen, and the unusable answers by reason."""
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
        for name, one in list(groups.items())[:GROUPS]:
            table.add_row(f"{grouping} {escape(name) or '—'}", *_cells(one, protocol))
        if len(groups) > GROUPS:
            table.add_row(f"{len(groups) - GROUPS} more in results.json")
    console.print(table)
    if results["unusable"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in results["unusable"].items())
        console.print(f"unusable answers, each an empty mask: {reasons}")


def _cells(one: Mapping[str, Any], protocol: str) -> list[str]:
    figures = one[protocol]
    return [f"{one['rows']:,}", f"{figures['giou']:.3f}", f"{figures['ciou']:.3f}", f"{one['format_rate']:.3f}"]


def _interval(found: list[float] | None) -> str:
    return "one image" if found is None else f"{found[0]:.3f} to {found[1]:.3f}"
