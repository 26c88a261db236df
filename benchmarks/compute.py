"""Rollouts until a held-out gIoU in the tiny world: all rows, rows that teach, dynamic sampling, both. Paired by seed.

    python benchmarks/compute.py                                      4 variants, seeds 1 2 3 4 5
    python benchmarks/compute.py --seed 1 --seed 2 --only every_row   some of them
    python benchmarks/compute.py --goal 0.7                           another gIoU

`rows_that_teach` trains on the rows whose ceiling is above 0.5 and whose success rate lies in [0.1, 0.9], as
`samr1 data ceiling` and `samr1 data difficulty` measure them once, before all seeds. The answers that the latter costs
are counted apart. Every run validates on held-out scenes after every VALIDATE steps, and ends at the first validation
at or above the goal: rollouts are those that were drawn until then. A run that does not reach it counts with all its
rollouts, and the table says how many did not. The learning rate decays over `--steps`, wherever a run ends.

Runs land in runs/compute/<steps>_steps/<variant>/<seed>; the curves of each finished run go into the record, one line
each. A second call reads what the record has and resumes the rest from checkpoints. The last line is one JSON object.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from transformers.utils import logging as transformers_logging

from benchmarks.demo_training import RECIPE, Training
from benchmarks.paired_runs import chosen, difference, keep, only_option, recorded, seeds_option, spread
from samr1_verl.policies.inference_config import compose_recipe

console = Console()
ROOT = Path("runs/compute")
RECORD = Path(__file__).with_name("compute_runs.jsonl")
TRAIN, HELD_OUT = Path("data/shapes/train.parquet"), Path("data/shapes/test.parquet")
VALIDATE = 4  # steps between two validations
KEPT = ROOT / "difficulty" / "rows.parquet"
ROWS = (f"data.train_files={KEPT}", "samr1.keep_rows={ceiling: [0.5, 1], success_rate: [0.1, 0.9]}")
FILTER = ("algorithm.filter_groups.enable=true",)
VARIANTS = {"every_row": (), "rows_that_teach": ROWS, "filter_groups": FILTER, "both": (*ROWS, *FILTER)}
REFERENCE = "every_row"
GIOU = "val-core/shapes/acc/mean@1"
DRAWN, COUNT = "critic/groups/drawn", "critic/groups/count"


def curves_of(name: str, seed: int, steps: int, goal: float, record: Path) -> dict[str, list[float]]:
    """The validated steps of a run, their gIoU, and the rollouts that were drawn until each of them."""
    run = {"steps": steps, "goal": goal, "variant": name, "seed": seed}
    if found := recorded(record, run):
        return found
    folder = ROOT / f"{steps}_steps" / name / str(seed)
    overrides = (
        *VARIANTS[name],
        f"data.seed={seed}",
        f"trainer.total_training_steps={steps}",
        f"trainer.default_local_dir={folder}",
        f"trainer.test_freq={VALIDATE}",
        f"data.val_files={HELD_OUT}",
    )
    folder.mkdir(parents=True, exist_ok=True)
    console.rule(f"{name}, seed {seed}")
    training = Training(overrides, compose_recipe(RECIPE, overrides), folder, console)
    if not max(logged(training.log)[GIOU].values(), default=0.0) >= goal:
        training.finish(until=lambda line: any(giou >= goal for _, giou in found_in(line, GIOU)))
    figures = reached(logged(training.log), compose_recipe(RECIPE).actor_rollout_ref.rollout.n, goal)
    keep(record, run, figures)
    return figures


def found_in(line: str, metric: str) -> Iterator[tuple[int, float]]:
    """(step, value) of a metric in a line of verl's console: `step:4 - reward/acc:0.5 - x:np.float64(0.7) - …`."""
    step = re.search(r"\bstep:(\d+) - ", line)
    value = re.search(rf" - {re.escape(metric)}:(?:np\.float64\()?([-\d.e]+)", line)
    if step and value:
        yield int(step[1]), float(value[1])


def logged(log: Path) -> dict[str, dict[int, float]]:
    """Step → value of the metrics of this file, from the output of all starts of a run."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return {name: dict(pair for line in lines for pair in found_in(line, name)) for name in (GIOU, DRAWN, COUNT)}


def reached(curves: Mapping[str, Mapping[int, float]], group: int, goal: float) -> dict[str, list[float]]:
    """As `curves_of`, up to the goal. Arguments: a run's curves, rollouts per prompt, and the gIoU that ends it."""
    groups, steps = curves[DRAWN] or curves[COUNT], []
    for step in sorted(curves[GIOU]):
        steps.append(step)
        if curves[GIOU][step] >= goal:
            break
    rollouts = [group * sum(count for at, count in groups.items() if at <= step) for step in steps]
    return {
        "step": [float(step) for step in steps],
        "giou": [curves[GIOU][step] for step in steps],
        "rollouts": rollouts,
    }


def rollouts_until(run: Mapping[str, Sequence[float]], goal: float) -> tuple[float, bool]:
    """The rollouts until the first validation at or above the goal, and whether there is one; else all rollouts."""
    hits = [count for count, giou in zip(run["rollouts"], run["giou"], strict=True) if giou >= goal]
    return (hits[0], True) if hits else (run["rollouts"][-1], False)


def table(results: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], goal: float) -> str:
    """Markdown: one row per variant."""
    lines = [
        f"| variant | rollouts until gIoU {goal:g} | minus `{REFERENCE}` [95 %] | steps | seeds that reached it |",
        "|---|---|---|---|---|",
    ]
    spent = {name: [rollouts_until(run, goal) for run in runs] for name, runs in results.items()}
    for name, runs in results.items():
        counts = [count for count, _ in spent[name]]
        more = ""
        if name != REFERENCE and REFERENCE in results:
            more = difference(counts, [count for count, _ in spent[REFERENCE]], 0)
        hits = sum(hit for _, hit in spent[name])
        steps = spread([run["step"][-1] for run in runs], 0)
        lines.append(f"| `{name}` | {spread(counts, 0)} | {more} | {steps} | {hits} of {len(runs)} |")
    return "\n".join(lines)


def measure(samples: int) -> dict[str, Any]:
    """Measure the training rows by the commands of docs/compute.md, and return what the measurement found and cost."""
    ceiling = [str(TRAIN), "--recipe", RECIPE, "--out", str(ROOT / "ceiling")]
    at = command("ceiling", *ceiling)
    rows = str(ROOT / "ceiling" / "rows.parquet")
    found = command(
        "difficulty",
        rows,
        "--recipe",
        RECIPE,
        "--samples",
        str(samples),
        "--out",
        str(KEPT.parent),
        "--keep",
        "0.1..0.9",
    )
    return {"rows": at["rows"], "ceiling": at["giou"], "kept": found["kept"], "answers": at["rows"] * samples}


def command(*arguments: str) -> dict[str, Any]:
    """The last line of a `samr1 data` command."""
    console.rule(f"samr1 data {' '.join(arguments)}")
    done = subprocess.run(
        [sys.executable, "-m", "samr1_verl.cli", "data", *arguments], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(done.returncode)  # its message is on standard error
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(
    seeds: Annotated[list[int], seeds_option(5)],
    steps: Annotated[int, typer.Option(min=VALIDATE, help="steps of each run, at most")] = 32,
    only: Annotated[list[str] | None, only_option(VARIANTS)] = None,
    goal: Annotated[float, typer.Option(min=0, max=1, help="held-out gIoU")] = 0.8,
    samples: Annotated[int, typer.Option(min=8, help="answers a row of the measured difficulty")] = 16,
    record: Annotated[Path, typer.Option(help="JSON lines, one for each finished run")] = RECORD,
) -> None:
    """Train the missing runs and print the table. The last line is one JSON object."""
    transformers_logging.disable_progress_bar()
    names = chosen(VARIANTS, only)
    measured = measure(samples) if any(ROWS[0] in VARIANTS[name] for name in names) else None
    results: dict[str, list[Any]] = {name: [] for name in names}
    for seed in seeds:  # a whole table after each seed
        for name in names:
            results[name].append(curves_of(name, seed, steps, goal, record))
    typer.echo(table(results, goal))
    typer.echo(json.dumps({"seeds": seeds, "steps": steps, "goal": goal, "measured": measured, "runs": results}))


if __name__ == "__main__":
    typer.run(main)
