"""`samr1 regress`: a training is recorded, and later trainings are compared with it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from samr1_verl.cli.options import errors_end_the_command

app = typer.Typer(no_args_is_help=True, help="Record a short training, and compare later trainings with it.")
SEED = "actor_rollout_ref.rollout.seed"
Overrides = Annotated[
    list[str] | None, typer.Argument(help="keys of the recipe as key=value, as on verl's command line")
]
Work = Annotated[Path, typer.Option(help="folder of the training; emptied first")]


@app.command()
def record(
    recipe: Annotated[str, typer.Argument(help="name of the recipe, such as samr1_tiny")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="golden file to write")] = Path("golden.json"),
    steps: Annotated[int, typer.Option(min=1, help="number of training steps")] = 3,
    repeat: Annotated[
        int, typer.Option(min=0, help="repetitions with other random numbers; their spread is the tolerance elsewhere")
    ] = 3,
    work: Work = Path("runs/regress"),
) -> None:
    """Train a recipe and its repetitions, and write metrics, digests and versions to a golden file."""
    from samr1_verl.policies.inference_config import compose_recipe
    from samr1_verl.regress.golden import Golden, Place
    from samr1_verl.regress.training import train
    from samr1_verl.rehearsal.process import ended_by_signals

    given = overrides or []
    with errors_end_the_command(), ended_by_signals():
        config = compose_recipe(recipe, given)
        _require_determinism(config.actor_rollout_ref.rollout.full_determinism, recipe)
        started = time.monotonic()
        run = train(recipe, given, steps, work)
        typer.echo(f"recorded {steps} steps of {recipe} in {time.monotonic() - started:.0f} s")
        repetitions = []
        for number in range(1, repeat + 1):
            seed = config.actor_rollout_ref.rollout.seed + number
            repetitions.append(train(recipe, [*given, f"{SEED}={seed}"], steps, work))
            typer.echo(f"repetition {number} of {repeat}: {SEED}={seed}")
        golden = Golden(
            recipe=recipe, overrides=given, steps=steps, place=Place.here(), run=run, repetitions=repetitions
        )
        golden.save(out)
    typer.echo(json.dumps({"golden": str(out), "weights": run.weights, "steps": steps, "repetitions": repeat}))


@app.command()
def check(
    golden: Annotated[Path, typer.Argument(help="golden file of samr1 regress record")],
    overrides: Overrides = None,
    tolerance: Annotated[
        bool, typer.Option("--tolerance", help="compare within the repetitions on the same machine too, as GPUs need")
    ] = False,
    work: Work = Path("runs/regress"),
) -> None:
    """Train again and compare. Exit status 0: as recorded. 1: the first step and metric that differ are shown.

    On the same processor with the same versions, every metric, answer and weight must be equal to the bit. Elsewhere,
    each metric must lie in the interval of the recorded repetitions.
    """
    from samr1_verl.regress.golden import Golden, Place, first_difference
    from samr1_verl.regress.training import RegressError, train
    from samr1_verl.rehearsal.process import ended_by_signals

    with errors_end_the_command(), ended_by_signals():
        recorded = Golden.load(golden)
        differences = ["--tolerance"] if tolerance else recorded.place.differences(Place.here())
        exact = not differences
        if exact:
            typer.echo("comparison: exact, because processor and versions are those of the recording")
        elif recorded.repetitions:
            typer.echo(f"comparison: within the recorded repetitions, because of {'; '.join(differences)}")
        else:
            raise RegressError(
                "no_repetitions",
                f"{golden}",
                f"has no repetitions, which a comparison within tolerances needs ({'; '.join(differences)}). Record it "
                "again with --repeat 3",
            )
        run = train(recorded.recipe, [*recorded.overrides, *(overrides or [])], recorded.steps, work)
        difference = first_difference(recorded, run, exact)
    typer.echo("as recorded" if difference is None else str(difference))
    outcome = {"ok": difference is None, "comparison": "exact" if exact else "tolerance"}
    if difference is not None:
        outcome |= difference._asdict()
    typer.echo(json.dumps(outcome))
    raise typer.Exit(0 if difference is None else 1)


def _require_determinism(full_determinism: bool, recipe: str) -> None:
    """Raises RegressError where the recipe's rollouts do not repeat."""
    from samr1_verl.regress.training import RegressError

    if not full_determinism:
        raise RegressError(
            "not_deterministic",
            recipe,
            "actor_rollout_ref.rollout.full_determinism is false, so two runs differ. Add "
            "actor_rollout_ref.rollout.full_determinism=true and "
            "actor_rollout_ref.actor.fsdp_config.full_determinism=true",
        )
