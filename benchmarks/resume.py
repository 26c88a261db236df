"""Kill a training at random moments, resume it each time, and compare it with a training that nobody killed.

    python benchmarks/resume.py                                    ten kills, 16 steps of +recipe=samr1_tiny
    python benchmarks/resume.py --kills 2 --steps 4 --work /tmp/r  fewer, and shorter

Every process of the training gets SIGKILL at once. Compared are: every metric but times, of every start and step; the
samples of every step; weights, optimizer, learning rate and random states of the last checkpoint. The last line is one
JSON object, and the exit status is 0 where everything is equal to the bit.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from samr1_verl.regress.training import command, digest_of_state, latest_checkpoint, read, train
from samr1_verl.rehearsal.process import kill, without_a_cluster
from samr1_verl.training.checkpoints import TRACKER

RECIPE = "samr1_tiny"
OVERRIDES = ("trainer.val_before_train=false",)  # a resumed run would validate once more


def start(out: Path, number: int, steps: int, save_every: int, kill_after_s: float | None) -> int | None:
    """Train from the last checkpoint on. Returns the exit status; None: killed after `kill_after_s` seconds."""
    metrics, log = out / f"metrics_{number}.jsonl", out / f"train_{number}.log"
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        line = command(RECIPE, OVERRIDES, steps, out, metrics, Path(ray_folder))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*line, f"trainer.save_freq={save_every}"],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=without_a_cluster(),
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(kill_after_s)
            kill(process)
    return None


def differences(whole: Path, killed: Path, starts: int) -> list[str]:
    """Everything in which the killed training is not the whole one."""
    reference = read(whole / "metrics.jsonl", whole / "rollouts", whole / "run")
    # A start that was killed early has logged no step, and neither has one that resumed from the last checkpoint.
    files = {number: killed / f"metrics_{number}.jsonl" for number in range(starts)}
    logs = {number: text for number, file in files.items() if file.exists() and (text := file.read_text())}
    found = read(files[max(logs)], killed / "rollouts", killed / "run")
    wrong, missing = [], set(reference.metrics)
    for number, text in logs.items():
        for line in text.splitlines():
            entry = json.loads(line)
            step, logged = entry["step"], entry["data"]
            missing.discard(step)
            for name, value in reference.metrics[step].items():
                if name in logged and logged[name] != value:
                    wrong.append(f"start {number}, step {step}: {name} is {logged[name]}, was {value}")
    wrong += [f"step {step}: no start has logged it" for step in sorted(missing)]
    for step, digest in reference.samples.items():
        if found.samples.get(step) != digest:
            wrong.append(f"step {step}: samples {found.samples.get(step)}, were {digest}")
    states = [digest_of_state(latest_checkpoint(folder / "run")) for folder in (whole, killed)]
    typer.echo(f"weights {reference.weights} and {found.weights}\nstate   {states[0]} and {states[1]}")
    if reference.weights != found.weights or states[0] != states[1]:
        wrong.append("the last checkpoints differ")
    return wrong


def main(
    kills: Annotated[int, typer.Option(min=1, help="number of kills")] = 10,
    steps: Annotated[int, typer.Option(min=2, help="steps of the training")] = 16,
    save_every: Annotated[int, typer.Option(min=1, help="steps between two checkpoints")] = 2,
    earliest_s: Annotated[float, typer.Option(help="earliest second of a kill, counted from the start")] = 20.0,
    latest_s: Annotated[float, typer.Option(help="latest second of a kill")] = 90.0,
    seed: Annotated[int, typer.Option(help="seed of the moments")] = 0,
    work: Annotated[Path, typer.Option(help="folder of both trainings; emptied first")] = Path("runs/resume"),
) -> None:
    """Train twice, once with kills, and compare."""
    whole, killed = work.absolute() / "whole", work.absolute() / "killed"
    shutil.rmtree(killed, ignore_errors=True)
    killed.mkdir(parents=True)
    rng = random.Random(seed)
    done, starts, status = 0, 0, None
    while status is None:
        moment = rng.uniform(earliest_s, latest_s) if done < kills else None
        started = time.monotonic()
        status = start(killed, starts, steps, save_every, moment)
        starts += 1
        tracker = killed / "run" / TRACKER
        named = tracker.read_text() if tracker.exists() else "none"
        typer.echo(f"start {starts}: status {status} after {time.monotonic() - started:.1f} s, checkpoint {named}")
        done += status is None
    if status:
        typer.echo(f"the training ended with an error: {killed / f'train_{starts - 1}.log'}")
        raise typer.Exit(1)
    train(RECIPE, OVERRIDES, steps, whole)
    found = differences(whole, killed, starts)
    typer.echo("\n".join(found[:20]) or "equal to the bit")
    typer.echo(json.dumps({"kills": done, "starts": starts, "differences": len(found)}))
    raise typer.Exit(int(bool(found) or done < kills))


if __name__ == "__main__":
    typer.run(main)
