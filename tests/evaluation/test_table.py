"""The printed tables: every protocol on a terminal of 80 columns, and what has no rows."""

from io import StringIO
from typing import Any

from rich.console import Console

from samr1_verl.cli.evaluate import Shown
from samr1_verl.evaluation.table import FIGURES, show
from samr1_verl.geometry.giou import PROTOCOLS, PixelCounts, figures

HALF = PixelCounts(50, 100, truth=100)
NOTHING = PixelCounts(0, 0, truth=0, answer="nothing")


def printed(*counts: PixelCounts, protocol: str = "lisa") -> str:
    group = {name: figures(counts, rules) for name, rules in PROTOCOLS.items()}
    group |= {"rows": len(counts), "images": 1, "format_rate": 1.0}
    results: dict[str, Any] = {"protocol": protocol, "giou_ci": None, "ciou_ci": None, "unusable": {}, **group}
    results["tables"] = {"size": {"none": group, "small": group}}
    console = Console(width=80, record=True, file=StringIO())
    show(results, console)
    return console.export_text()


def line(text: str, name: str) -> list[str]:
    return next(cells for one in text.splitlines() if (cells := one.split()) and cells[0] == name)


def test_every_protocol_has_a_line_that_fits_a_terminal() -> None:
    text = printed(HALF, NOTHING)
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert all(title in text for title in FIGURES.values())
    assert line(text, "lisa") == ["lisa", "0.750", "0.500", "1.000", "1.000", "0.000", "0.000", "0"]
    assert line(text, "segzero") == ["segzero", "0.250", "0.500", "1.000", "1.000", "1.000", "0.000", "0"]
    assert line(text, "segzero_scripts") == ["segzero_scripts", "0.500", "0.500", "—", "1.000", "1.000", "0.000", "1"]
    assert [line(text, name)[0] for name in PROTOCOLS] == list(PROTOCOLS)


def test_a_protocol_that_leaves_all_rows_out_prints_no_figure() -> None:
    text = printed(NOTHING, protocol="segzero_scripts")
    assert line(text, "segzero_scripts") == ["segzero_scripts", *["—"] * 6, "1"]


def test_the_command_offers_every_protocol() -> None:
    assert [shown.value for shown in Shown] == list(PROTOCOLS)
