"""The results of an evaluation as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from samr1_verl.geometry.giou import PROTOCOLS

GROUPS = 20  # maximum number of groups printed per grouping; results.json has all
FIGURES = {  # columns of the table of protocols; results.json also has Pr@0.6 to Pr@0.8
    "giou": "gIoU",
    "ciou": "cIoU",
    "n_acc": "N-acc",
    "t_acc": "T-acc",
    "pr@0.5": "Pr@0.5",
    "pr@0.9": "Pr@0.9",
}


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print the figures by every protocol; gIoU and cIoU by the chosen protocol, with intervals and per group; the
    unusable answers per reason; and the figures turn by turn, where the policy looks at its mask.

    Args:
        results: as `run.results_of` returns them.
    """
    protocol = results["protocol"]
    console.print(protocols_of(results))
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
    if "turns" in results:
        console.print(turns_of(results["turns"]))


def show_curve(curve: Sequence[Mapping[str, Any]], protocol: str, console: Console) -> None:
    """Print figures and cost against the number of answers a row, then gIoU by every protocol.

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
            _figure(figures.get("giou")),
            _interval(figures["giou_ci"]),
            _figure(figures.get("ciou")),
            f"{cost['answers']:,}",
            "unknown" if cost["tokens"] is None else f"{cost['tokens']:,}",
            f"{cost['policy_seconds']:,.1f}",
            f"{cost['segmenter_seconds']:,.1f}",
        )
    console.print(table)
    every = Table(title="gIoU of N answers, by protocol", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column in ("protocol", *(str(point["votes"]) for point in curve)):
        every.add_column(column, justify="left" if column == "protocol" else "right", no_wrap=True)
    for name in PROTOCOLS:
        every.add_row(name, *(_figure(point[name].get("giou")) for point in curve))
    console.print(every)


def protocols_of(results: Mapping[str, Any]) -> Table:
    """The figures over all rows as a table with one line per protocol; "—": no row has this figure."""
    table = Table(title="all sentences, by protocol", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column in ("protocol", *FIGURES.values(), "left out"):
        table.add_column(column, justify="left" if column == "protocol" else "right", no_wrap=True)
    for name in PROTOCOLS:
        found = results[name]
        table.add_row(name, *(_figure(found.get(key)) for key in FIGURES), f"{found['left_out']:,.0f}")
    return table


def turns_of(turns: Mapping[str, Any]) -> Table:
    """The figures of dialogues as a table with one line per number of turns.

    Args:
        turns: as `turns.turn_figures` returns them.
    """
    tokens = "" if turns["tokens"] is None else f", {turns['tokens']:,.1f} tokens"
    title = f"a dialogue: {turns['mean']:.2f} turns{tokens}; {turns['done']:.1%} end with done"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    names = [name for name in turns["after"][0] if name in PROTOCOLS]
    columns = [f"{figure}, {name}" for name in names for figure in ("gIoU", "cIoU")]
    for column in ("stopped after turn", "dialogues that have it", *columns):
        table.add_column(column, justify="right")
    for stop in turns["after"]:
        figures = (_figure(stop[name].get(key)) for name in names for key in ("giou", "ciou"))
        table.add_row(str(stop["turn"]), f"{stop['reached']:,}", *figures)
    return table


def _cells(group: Mapping[str, Any], protocol: str) -> list[str]:
    ious = (_figure(group[protocol].get(name)) for name in ("giou", "ciou"))
    return [f"{group['rows']:,}", *ious, f"{group['format_rate']:.3f}"]


def _figure(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _interval(interval: list[float] | None) -> str:
    return "one image" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
