"""The demo: train the tiny policy with the small SAM in the loop and show the effect of the mask reward.

    python benchmarks/demo.py             train, score the held-out test split before and after, draw
    python benchmarks/demo.py --control   the same with rewards shuffled inside each group, for comparison

Everything lands in runs/samr1_tiny (the control in runs/samr1_tiny_control): train.log, checkpoints, tensorboard,
before.json and after.json with every response, reward.png, masks.png and summary.json. A second call resumes from the
last checkpoint; --restart begins anew.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from benchmarks import demo_plots
from benchmarks.demo_scores import Summary, rows_of, score_rows
from benchmarks.demo_training import RECIPE, MemorySampler, Training, stored
from samr1_verl.policies.checkpoints import Files
from samr1_verl.policies.inference_config import compose_recipe
from samr1_verl.policies.local import LocalPolicy

CONTROL = f"{RECIPE}_control"
TEST_FILE = Path("data/shapes/test.parquet")
CONTROL_OVERRIDES = ("samr1.objective.shuffle_rewards=true", f"trainer.experiment_name={CONTROL}")
console = Console()


def score_policy(folder: Path, recipe: DictConfig, kept: Path) -> list[dict[str, Any]]:
    """Greedy answers about the test split with their scores; kept in a JSON file and read back from it."""
    if kept.exists():
        return json.loads(kept.read_text())
    rows = rows_of(recipe, TEST_FILE)
    with console.status(f"scoring {folder} on {len(rows)} held-out sentences"):
        dtype = recipe.actor_rollout_ref.rollout.dtype  # as it was validated; its config.json says bfloat16
        policy = LocalPolicy(Files(folder), recipe.data.max_response_length, dtype=dtype)
        results = score_rows(policy, rows, recipe)
    kept.write_text(json.dumps(results))
    return results


def figures(results: list[dict[str, Any]]) -> dict[str, float]:
    return Summary.of([row["scores"] for row in results]).as_dict()


def show(run: Path, summary: dict[str, Any]) -> None:
    """The figures as a table, then as the last line one JSON object."""
    table = Table(title="Held-out test scenes, greedy decoding, gIoU and cIoU by the segzero protocol")
    for column in ("", "gIoU", "cIoU", "format rate", "mean reward"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("before", "after", "control"):
        if run_figures := summary.get(name):
            table.add_row(name, *(f"{run_figures[key]:.3f}" for key in ("giou", "ciou", "format_rate", "mean_reward")))
    console.print(table)
    console.print(f"curves {run / 'reward.png'}   masks {run / 'masks.png'}   figures {run / 'summary.json'}")
    typer.echo(json.dumps(summary))


def draw(recipe: DictConfig, run: Path, runs: dict[str, Path]) -> None:
    """reward.png with every finished run's curve, masks.png with this run's masks."""
    demo_plots.reward_curves(runs[RECIPE], runs.get(CONTROL), run / "reward.png")
    before, after = (json.loads((run / f"{when}.json").read_text()) for when in ("before", "after"))
    demo_plots.contact_sheet(rows_of(recipe, TEST_FILE), before, after, recipe, run / "masks.png")


def main(
    control: Annotated[bool, typer.Option("--control", help="control run: rewards shuffled inside each group")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="new run in place of the earlier one")] = False,
) -> None:
    """Run the demo, or resume it. The last line is one JSON object."""
    transformers_logging.disable_progress_bar()
    overrides = CONTROL_OVERRIDES if control else ()
    recipe = compose_recipe(RECIPE, overrides)
    run = Path(recipe.trainer.default_local_dir)
    if restart:
        shutil.rmtree(run, ignore_errors=True)
    if (run / "summary.json").exists():
        show(run, add_control(run, control))
        command = f"python benchmarks/demo.py{' --control' * control} --restart"
        console.print(f"This run was finished before. To train anew: {command}")
        return
    run.mkdir(parents=True, exist_ok=True)
    spent = stored(run / "spent.json") or {"wall_s": 0.0, "peak_rss_gb": 0.0}
    began = time.monotonic()
    training = Training(overrides, recipe, run, console)
    with MemorySampler() as memory:
        try:
            before = score_policy(Path(recipe.actor_rollout_ref.model.path), recipe, run / "before.json")
            training.finish()
            after = score_policy(training.policy_folder(), recipe, run / "after.json")
        finally:  # an interrupted and resumed run counts all its parts
            spent["wall_s"] = round(spent["wall_s"] + time.monotonic() - began, 1)
            spent["peak_rss_gb"] = round(max(spent["peak_rss_gb"], memory.peak_gb), 2)
            (run / "spent.json").write_text(json.dumps(spent))
    summary = {"before": figures(before), "after": figures(after), **spent}
    summary |= {"seed": recipe.data.seed, "steps": training.steps}
    (run / "summary.json").write_text(json.dumps(summary, indent=2))
    summary = add_control(run, control)
    finished = {name: run.parent / name for name in (RECIPE, CONTROL) if (run.parent / name / "summary.json").exists()}
    if RECIPE in finished:
        draw(recipe, run, finished)
    show(run, summary)


def add_control(run: Path, control: bool) -> dict[str, Any]:
    """The run's summary, with the control's figures beside it once both have run."""
    main_file, control_file = (run.parent / name / "summary.json" for name in (RECIPE, CONTROL))
    if main_file.exists() and control_file.exists():
        both = stored(main_file) | {"control": stored(control_file)["after"]}
        main_file.write_text(json.dumps(both, indent=2))
    return stored(control_file if control else main_file)


if __name__ == "__main__":
    typer.run(main)
