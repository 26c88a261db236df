"""Training runs of several variants, paired by seed: options, the record of finished runs, means and differences."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from scipy import stats

from samr1_verl.regress.golden import Place

CONFIDENCE = 0.95


def seeds_option(last: int) -> Any:
    """The option `--seed`; without it, seeds 1 to `last`."""
    return typer.Option(
        "--seed",
        default_factory=lambda: list(range(1, last + 1)),
        show_default=f"1 to {last}",
        help="seed of a run; repeat it for several",
    )


def only_option(variants: Iterable[str]) -> Any:
    """The option `--only`."""
    return typer.Option(help=f"variant: {', '.join(variants)}; repeat it for several; default: all")


def chosen(variants: Iterable[str], only: Sequence[str] | None) -> list[str]:
    """The variants of `--only`, in their own order. Raises typer.BadParameter for an unknown one."""
    variants = list(variants)
    if unknown := sorted(set(only or ()) - set(variants)):
        raise typer.BadParameter(f"--only {unknown[0]}: no such variant, expected one of {', '.join(variants)}")
    return [name for name in variants if not only or name in only]


def recorded(record: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """Figures of a finished run; None: the record does not have it."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    found = [line["figures"] for line in map(json.loads, lines) if line["run"] == run]
    return found[-1] if found else None


def keep(record: Path, run: dict[str, Any], figures: dict[str, Any]) -> None:
    """Add a finished run to the record."""
    with record.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"run": run, "figures": figures, "processor": Place.here().processor}) + "\n")


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± sample standard deviation, the latter only where there are two values."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def paired(reference: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Mean of `reference` minus `other`, and its 95 % interval by Student's t over the pairs; NaN for one pair."""
    differences = [one - two for one, two in zip(reference, other, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, math.nan, math.nan
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * error
    return mean, mean - reach, mean + reach


def difference(reference: Sequence[float], other: Sequence[float], digits: int = 3) -> str:
    """`paired` as a text; one pair has no interval."""
    mean, low, high = (f"{value:+.{digits}f}" for value in paired(reference, other))
    return f"{mean} [{low}, {high}]" if len(reference) > 1 else mean
