"""`samr1 doctor`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape


def doctor(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="keys of the recipe as key=value, as on verl's command line")
    ] = None,
    recipe: Annotated[str, typer.Option(help="name of the recipe")] = "samr1",
    gpu_gb: Annotated[
        float | None,
        typer.Option(min=1, help="plan memory for GPUs of this size in GB; default: the GPUs of this machine"),
    ] = None,
    host_gb: Annotated[
        float | None, typer.Option(min=1, help="host memory per node in GB; default: free memory of this machine")
    ] = None,
    disk_gb: Annotated[
        float | None,
        typer.Option(min=1, help="free disk in GB for checkpoints; default: free space on this machine's disk"),
    ] = None,
) -> None:
    """Check that this environment can run a recipe, and plan its memory. Exit status 0: no problem."""
    from samr1_verl.preflight.doctor import examine

    console = Console(soft_wrap=True, highlight=False)
    failed = False
    for finding in examine(recipe, overrides or [], gpu_gb, host_gb, disk_gb):
        failed |= bool(finding.problems)
        mark = "[red]✗[/red]" if finding.problems else "[green]✓[/green]"
        console.print(f"{mark} [bold]{escape(finding.subject)}[/bold]  {escape(finding.detail)}")
        for problem in finding.problems:
            console.print(f"    {escape(problem)}")
        for line in finding.lines:
            console.print(f"    [dim]{escape(line)}[/dim]")
    raise typer.Exit(1 if failed else 0)
