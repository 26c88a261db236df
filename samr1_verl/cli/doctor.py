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
) -> None:
    """Check that this environment can run a recipe. Exit status 0: no problem."""
    from samr1_verl.preflight.doctor import examine

    console = Console(soft_wrap=True, highlight=False)
    failed = False
    for finding in examine(recipe, overrides or []):
        failed |= bool(finding.problems)
        mark = "[red]✗[/red]" if finding.problems else "[green]✓[/green]"
        console.print(f"{mark} [bold]{escape(finding.subject)}[/bold]  {escape(finding.detail)}")
        for problem in finding.problems:
            console.print(f"    {escape(problem)}")
    raise typer.Exit(1 if failed else 0)
