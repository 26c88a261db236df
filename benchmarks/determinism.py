"""The price of runs that repeat: the time of a training step with and without full determinism.

    python benchmarks/determinism.py                        8 steps of +recipe=samr1_tiny, each way twice, by turns
    python benchmarks/determinism.py --steps 3 --rounds 1   fewer

A training before them, whose times do not count, computes the embeddings of all images. Step 1 is left out, because the
processes warm up in it. The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated

import typer

from samr1_verl.regress.training import train

RECIPE = "samr1_tiny"
KEYS = (
    "actor_rollout_ref.rollout.full_determinism",
    "actor_rollout_ref.actor.fsdp_config.full_determinism",
    "actor_rollout_ref.ref.fsdp_config.full_determinism",
)
PARTS = ("timing_s/step", "timing_s/gen", "timing_s/old_log_prob", "timing_s/ref", "timing_s/update_actor")


def times(value: bool, steps: int, out: Path) -> dict[str, float]:
    """Mean seconds of each part over the steps from the second on."""
    overrides = [f"{key}={value}" for key in KEYS]
    train(RECIPE, [*overrides, "data.val_max_samples=8", "trainer.val_before_train=false"], steps, out)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steady = [entry["data"] for entry in logged if entry["step"] > 1 and PARTS[0] in entry["data"]]
    return {part: statistics.fmean(step[part] for step in steady) for part in PARTS if part in steady[0]}


def main(
    steps: Annotated[int, typer.Option(min=2, help="steps of each training")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="trainings each way")] = 2,
    work: Annotated[Path, typer.Option(help="folder of the trainings; emptied first")] = Path("runs/determinism"),
) -> None:
    """Train by turns with and without, and print the ratio of the times."""
    times(True, steps, work / "embeddings")
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for number in range(rounds):
        for value in (True, False):
            found[value].append(times(value, steps, work / f"{value}_{number}".lower()))
            typer.echo(f"round {number + 1}, full_determinism={value}: {found[value][-1]}")
    typer.echo("| part of a step | with (s) | without (s) | ratio |\n|---|---|---|---|")
    ratios = {}
    for part in found[True][0]:
        on, off = (statistics.fmean(run[part] for run in found[value]) for value in (True, False))
        ratios[part] = on / off
        typer.echo(f"| {part.removeprefix('timing_s/')} | {on:.2f} | {off:.2f} | {on / off:.2f} |")
    typer.echo(json.dumps({"ratios": ratios, "with": found[True], "without": found[False]}))


if __name__ == "__main__":
    typer.run(main)
