"""`samr1 rehearse`: a recipe trained for three steps with small stand-ins for its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from samr1_verl.cli.options import errors_end_the_command

if TYPE_CHECKING:
    from samr1_verl.rehearsal.rehearse import Result  # imports torch and verl


def rehearse(
    recipe: Annotated[str, typer.Argument(help="name of the recipe, such as samr1")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="keys of the recipe as key=value, as on verl's command line")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the rehearsal, on storage that all nodes share; default: runs/rehearsal/RECIPE"),
    ] = None,
) -> None:
    """Train a recipe for three steps with small stand-ins for policy and segmenter.

    Exit status 0: rewards, gradients, weight updates and resume were seen to work.
    """
    from samr1_verl.rehearsal.process import ended_by_signals
    from samr1_verl.rehearsal.rehearse import rehearse as run

    console = Console(soft_wrap=True, highlight=False, markup=False)
    with errors_end_the_command(), ended_by_signals():
        result = run(recipe, overrides or [], out or Path("runs/rehearsal") / recipe, console.print)
    _show(result, console)
    typer.echo(json.dumps(result.as_json()))
    raise typer.Exit(0 if result.ok else 1)


def _show(result: Result, console: Console) -> None:
    console.print("seconds of the parts of a step, per start:")
    for times in result.times:
        console.print("  " + "; ".join(f"{part} {', '.join(map(str, values))}" for part, values in times.items()))
    console.print("peak memory of all processes together, and time, by phase:")
    for phase, peak in result.memory.peak_gb.items():
        console.print(f"  {phase}: {peak:.1f} GB, {result.memory.seconds.get(phase, 0.0):.0f} s")
    roles = sorted(result.memory.roles_gb.items(), key=lambda item: -item[1])
    console.print("peak memory by process: " + ", ".join(f"{role} {peak:.1f} GB" for role, peak in roles))
    for check in result.checks:
        console.print(f"{'seen' if check.seen else 'NOT SEEN'}: {check.name}: {check.detail}")
    console.print("not covered:")
    for item in result.not_covered:
        console.print(f"  {item}")
