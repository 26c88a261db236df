"""A policy that looks at its mask in the tiny world, beside a control and beside the same policy with one turn.

    python benchmarks/refine.py                                 4 variants, seeds 1 2 3
    python benchmarks/refine.py --seed 1 --only refine          one run
    python benchmarks/refine.py --record mine.jsonl             train again what the record here has

`refine` is +recipe=samr1_refine_tiny. `shuffled` is the same with rewards shuffled inside each group. `one_turn` trains
the same policy by +recipe=samr1_tiny with as many rollouts; `one_turn_longer` has LONGER times as many steps, so that
the policy writes at least as many tokens as with `refine`. All variants start from the same weights.

Each trained policy answers the held-out scenes greedily, as `samr1 eval` asks it. Runs land in
runs/refine_runs/<steps>_steps/<variant>/<seed>, with the evaluation in `eval`; the figures of each finished run go into
the record, one line each. A second call reads what the record has and resumes the rest. It ends with the table as
Markdown and, as its last line, one JSON object, which also counts images and encodes of this call's evaluations.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from transformers.utils import logging as transformers_logging

from benchmarks.demo_training import Training
from benchmarks.paired_runs import chosen, difference, keep, only_option, recorded, seeds_option, spread
from samr1_verl.evaluation.judge import counts_in
from samr1_verl.evaluation.run import Evaluation
from samr1_verl.evaluation.turns import counts_after, turn_figures
from samr1_verl.geometry.giou import PROTOCOLS, giou_ciou
from samr1_verl.policies.inference_config import InferenceConfig, compose_recipe
from samr1_verl.policies.load import PolicyChoice
from samr1_verl.report.run import read_curves
from samr1_verl.scoring.sample import Sample
from samr1_verl.service.client import get_client
from samr1_verl.service.engine import Engine

console = Console()
ROOT = Path("runs/refine_runs")
RECORD = Path(__file__).with_name("refine_runs.jsonl")
HELD_OUT = Path("data/shapes/test.parquet")
REFINE, ONE_TURN = "samr1_refine_tiny", "samr1_tiny"
SAME_POLICY = "actor_rollout_ref.model.path=data/checkpoints/tiny_policy_refine"
LONGER = 3  # the maximum number of turns
EPOCHS = 10  # more than enough rows for all steps
REFERENCE = "refine"


@dataclass(frozen=True)
class Variant:
    """A row of the table: its recipe, its differences from it, and how many times the steps of `refine` it has."""

    title: str
    recipe: str
    overrides: tuple[str, ...] = ()
    longer: int = 1


VARIANTS = {
    "refine": Variant("looks at its mask", REFINE),
    "shuffled": Variant("the same, rewards shuffled", REFINE, ("samr1.objective.shuffle_rewards=true",)),
    "one_turn": Variant("one turn, as many rollouts", ONE_TURN, (SAME_POLICY,)),
    "one_turn_longer": Variant(f"one turn, {LONGER} times as many rollouts", ONE_TURN, (SAME_POLICY,), LONGER),
}


def inference(variant: Variant) -> InferenceConfig:
    """The variant's prompt, dialogue and segmenter. No embedding is read from a folder: encodes are counted."""
    config = InferenceConfig.of(compose_recipe(variant.recipe, variant.overrides))
    service = config.segmenter.service.model_copy(update={"cache_dir": None})
    return replace(config, segmenter=config.segmenter.model_copy(update={"service": service}))


def held_out(variant: Variant, policy: str | None, folder: Path) -> dict[str, Any]:
    """Figures of a policy on the held-out scenes, greedy.

    They are the gIoU after each turn, the share of the masks then that miss the object (`missed`), and means over the
    answers: turns, `done`, tokens, format.

    Args:
        policy: its folder; None: the policy that the variant's training starts from.
        folder: keeps the evaluation.
    """
    config = inference(variant)
    choice = PolicyChoice(config, policy)
    with console.status(f"{policy or config.model} answers {HELD_OUT}"):
        samples = Evaluation(HELD_OUT, choice, config).run(folder, False, lambda done, rows: None)
    return figures_of(samples)


def figures_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """As `held_out`, from judged samples. A policy with one turn has a single gIoU."""
    turns = turn_figures(samples) or {"mean": 1.0, "done": 0.0, "after": []}
    overall = giou_ciou([counts_in(sample) for sample in samples], PROTOCOLS["segzero"])
    giou = [after["segzero"]["giou"] for after in turns["after"]] or [overall["giou"]]
    counts = ([counts_after(sample, turn) for sample in samples] for turn in range(1, len(giou) + 1))
    return {
        "giou": giou,
        "missed": [statistics.fmean(count.intersection == 0 for count in after) for after in counts],
        "turns": turns["mean"],
        "done": turns["done"],
        "tokens": statistics.fmean(sample.tokens for sample in samples if sample.tokens is not None),
        "format_rate": statistics.fmean(sample.scores["format"] for sample in samples),
    }


def train(name: str, seed: int, steps: int, record: Path) -> dict[str, Any]:
    """Figures of one run on the held-out scenes; the missing part of it is trained first."""
    run = {"steps": steps, "variant": name, "seed": seed}
    if found := recorded(record, run):
        return found
    variant, folder = VARIANTS[name], ROOT / f"{steps}_steps" / name / str(seed)
    overrides = (
        *variant.overrides,
        f"data.seed={seed}",
        f"trainer.total_training_steps={steps * variant.longer}",
        f"trainer.total_epochs={EPOCHS}",
        f"trainer.default_local_dir={folder}",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
    )
    folder.mkdir(parents=True, exist_ok=True)
    console.rule(f"{name}, seed {seed}")
    recipe = compose_recipe(variant.recipe, overrides)
    training = Training(overrides, recipe, folder, console, variant.recipe)
    training.finish()
    figures = held_out(variant, str(training.policy_folder()), folder / "eval") | spent(folder, recipe)
    keep(record, run, figures)
    return figures


def spent(folder: Path, recipe: Any) -> dict[str, float]:
    """Rollouts of a run, and turns of all its rollouts."""
    curves = read_curves(folder)
    rollouts = recipe.data.train_batch_size * recipe.actor_rollout_ref.rollout.n
    turns = curves.get("reward/turns") or dict.fromkeys(curves["reward/acc"], 1.0)
    return {"rollouts": float(rollouts * len(turns)), "rollout_turns": rollouts * sum(turns.values())}


def table(results: Mapping[str, Sequence[Mapping[str, Any]]], before: Mapping[str, Any]) -> str:
    """Markdown: one row per variant, after a row for the policy that all start from."""
    lines = [
        "| variant | gIoU after turn 1, 2, 3 | looking minus it, last turns [95 %] | the mask misses the object | "
        "turns | ends with `done` | tokens of an answer | rollouts, and their turns in thousands |",
        "|---|---|---|---|---|---|---|---|",
        f"| before training | {_row([before])}",
    ]
    for name, runs in results.items():
        ahead = ""
        if name != REFERENCE and REFERENCE in results:
            ours, other = ([run["giou"][-1] for run in of] for of in (results[REFERENCE], runs))
            ahead = difference(ours, other)
        lines.append(f"| {VARIANTS[name].title} | {_row(runs, ahead)}")
    return "\n".join(lines)


def _row(runs: Sequence[Mapping[str, Any]], ahead: str = "") -> str:
    gious = ", ".join(spread(values) for values in _by_turn(runs, "giou"))
    missed = ", ".join(f"{statistics.fmean(values):.0%}" for values in _by_turn(runs, "missed"))
    turns, done, tokens = (statistics.fmean(run[key] for run in runs) for key in ("turns", "done", "tokens"))
    cost = ""
    if "rollouts" in runs[0]:
        rollouts, of_them = (statistics.fmean(run[key] for run in runs) for key in ("rollouts", "rollout_turns"))
        cost = f"{rollouts:.0f}, {of_them / 1000:.1f}"
    return f"{gious} | {ahead} | {missed} | {turns:.2f} | {done:.0%} | {tokens:.0f} | {cost} |"


def _by_turn(runs: Sequence[Mapping[str, Any]], key: str) -> Iterator[tuple[float, ...]]:
    """The runs' values after the first turn, the second, …; a run without such a turn keeps its last value."""
    last = max(len(run[key]) for run in runs)
    return zip(*(run[key] + run[key][-1:] * (last - len(run[key])) for run in runs), strict=True)


def main(
    seeds: Annotated[list[int], seeds_option(3)],
    steps: Annotated[int, typer.Option(min=1, help="steps of `refine`")] = 24,
    only: Annotated[list[str] | None, only_option(VARIANTS)] = None,
    record: Annotated[Path, typer.Option(help="JSON lines, one for each finished run")] = RECORD,
) -> None:
    """Train the missing runs and print the table. The last line is one JSON object."""
    transformers_logging.disable_progress_bar()
    names = chosen(VARIANTS, only)
    before = held_out(VARIANTS[REFERENCE], None, ROOT / "before")
    results: dict[str, list[Any]] = {name: [] for name in names}
    for seed in seeds:  # a whole table after each seed
        for name in names:
            results[name].append(train(name, seed, steps, record))
    engine = get_client(inference(VARIANTS[REFERENCE]).segmenter)  # one for the evaluations of all variants
    assert isinstance(engine, Engine)
    counters = engine.counters()
    typer.echo(table(results, before))
    counted = {"encodes": counters.encodes, "decodes": counters.decodes}
    typer.echo(json.dumps({"seeds": seeds, "steps": steps, "before": before, "runs": results, "segmenter": counted}))


if __name__ == "__main__":
    typer.run(main)
