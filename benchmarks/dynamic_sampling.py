"""Dynamic sampling in the tiny world: +recipe=samr1_tiny with and without algorithm.filter_groups, per seed.

    python benchmarks/dynamic_sampling.py                          seeds 1 2 3, 32 steps
    python benchmarks/dynamic_sampling.py --seed 1 --steps 8       fewer, and shorter

Runs land in runs/dynamic_sampling/<steps>_steps/<variant>/<seed>. A second call skips finished runs and resumes from
checkpoints. It ends with a Markdown table and, as its last line, one JSON object.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers.utils import logging as transformers_logging

from benchmarks.ablation import spread, trained
from benchmarks.demo import figures, score_policy
from benchmarks.demo_training import RECIPE, stored
from samr1_verl.policies.inference_config import compose_recipe

RUNS = Path("runs/dynamic_sampling")
VARIANTS = {"every_group": (), "filter_groups": ("algorithm.filter_groups.enable=true",)}
EQUAL = "critic/groups/zero_advantage_frac"


def train(name: str, seed: int, steps: int) -> dict[str, Any]:
    """The figures of one run; the missing part of it is trained first."""
    folder = RUNS / f"{steps}_steps" / name / str(seed)
    if result := stored(folder / "result.json"):
        return result
    overrides = (*VARIANTS[name], f"data.seed={seed}", f"trainer.total_training_steps={steps}")
    result, curves = trained(folder, f"{name}, seed {seed}", overrides)
    groups = curves.get("critic/groups/drawn", curves["critic/groups/count"])
    result["rollouts"] = sum(groups.values()) * compose_recipe(RECIPE).actor_rollout_ref.rollout.n
    result["with_gradient_in_batch"] = 1 - statistics.fmean(curves[EQUAL].values())
    result["with_gradient_in_batch_last_half"] = 1 - statistics.fmean(list(curves[EQUAL].values())[steps // 2 :])
    (folder / "result.json").write_text(json.dumps(result, indent=2))
    return result


def table(results: dict[str, list[dict[str, float]]], before: float) -> str:
    """Markdown: one row per variant."""
    lines = [
        "| variant | groups of a batch with a gradient (%) | the same, last half (%) | rollouts | gIoU | gain in gIoU "
        "per 1,000 rollouts |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        share, late = (
            spread([100 * run[key] for run in runs], 1)
            for key in ("with_gradient_in_batch", "with_gradient_in_batch_last_half")
        )
        gain = spread([1000 * (run["giou"] - before) / run["rollouts"] for run in runs])
        rollouts, giou = spread([run["rollouts"] for run in runs], 0), spread([run["giou"] for run in runs])
        lines.append(f"| {name} | {share} | {late} | {rollouts} | {giou} | {gain} |")
    return "\n".join(lines)


def main(
    seeds: Annotated[list[int], typer.Option("--seed", help="seed of a run; repeat it for several")] = [1, 2, 3],  # noqa: B006  (typer copies it)
    steps: Annotated[int, typer.Option(min=2, help="steps of each run")] = 32,
) -> None:
    """Train the missing runs and print the table. The last line is one JSON object."""
    transformers_logging.disable_progress_bar()
    recipe = compose_recipe(RECIPE)
    RUNS.mkdir(parents=True, exist_ok=True)
    before = figures(score_policy(Path(recipe.actor_rollout_ref.model.path), recipe, RUNS / "before.json"))
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for seed in seeds:  # both variants after each seed
        for name in VARIANTS:
            results[name].append(train(name, seed, steps))
    typer.echo(table(results, before["giou"]))
    typer.echo(json.dumps({"seeds": seeds, "steps": steps, "before": before, "after": results}))


if __name__ == "__main__":
    typer.run(main)
