"""The paper's ablation table on the tiny world: each variant is a training run of +recipe=samr1_tiny per seed.

    python benchmarks/ablation.py                                      8 variants, seeds 1 2 3 4 5
    python benchmarks/ablation.py --seed 1 --seed 2 --steps 24         fewer, and shorter
    python benchmarks/ablation.py --only samr1 --only no_kl            some of them
    python benchmarks/ablation.py --world talkative                    with reasoning of very different lengths
    python benchmarks/ablation.py --record mine.jsonl                  train again what the record here has

Runs with the same seed are paired: they see the same rows in the same order, and their rollouts have the same random
numbers. So SAM-R1 is compared with each variant seed by seed.

Runs land in runs/ablation/<world>_<steps>_steps/<variant>/<seed>: train.log, tensorboard, the last checkpoint and
after.json with every response. The figures of each finished run go into the record, one line each; that of
docs/ablation.md lies beside this file. A second call reads what the record has and resumes the rest from checkpoints.
It ends with the table as Markdown and, as its last line, one JSON object.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from transformers.utils import logging as transformers_logging

from benchmarks.demo import figures, score_policy
from benchmarks.demo_training import RECIPE, Training
from benchmarks.paired_runs import chosen, difference, keep, only_option, recorded, seeds_option, spread
from data.tiny_world import talkative
from samr1_verl.policies.inference_config import compose_recipe
from samr1_verl.report.run import read_curves

console = Console()
ROOT = Path("runs/ablation")
RECORD = Path(__file__).with_name("ablation_runs.jsonl")
CLIP_HIGH = "actor_rollout_ref.actor.clip_ratio_high"
THRESHOLDS = "samr1.reward.thresholds"
GRPO = ("samr1.objective.normalizer=sequence", f"{CLIP_HIGH}=0.2")


@dataclass(frozen=True)
class Variant:
    """A row of the table: its differences from SAM-R1, and the paper's gIoU and cIoU on ReasonSeg test, in percent."""

    title: str
    overrides: tuple[str, ...] = ()
    paper: tuple[float, float] | None = None


# A fixed threshold pays what the highest tier pays (unpublished), so that the format terms weigh the same in all.
VARIANTS = {
    "grpo": Variant("GRPO: normaliser per rollout, clip 0.2/0.2", GRPO, (57.8, 51.2)),
    "group": Variant("+ normaliser per group", GRPO[1:], (58.0, 51.7)),
    "high_clip": Variant("+ high clip 0.3", GRPO[:1], (59.1, 52.8)),
    "samr1": Variant("both, tiers 0.5/0.7/0.8: SAM-R1", (), (60.2, 54.3)),
    "fixed_0.5": Variant("both, threshold 0.5", (f"{THRESHOLDS}={{0.5:4,0.7:4,0.8:4}}",), (56.5, 51.9)),
    "fixed_0.7": Variant("both, threshold 0.7", (f"{THRESHOLDS}={{0.5:0,0.7:4,0.8:4}}",), (56.2, 51.6)),
    "fixed_0.8": Variant("both, threshold 0.8", (f"{THRESHOLDS}={{0.5:0,0.7:0,0.8:4}}",), (58.6, 50.8)),
    "no_kl": Variant(
        "SAM-R1 without KL",
        ("actor_rollout_ref.actor.use_kl_loss=false", "actor_rollout_ref.actor.kl_loss_coef=0"),
    ),
}
POLICY = "actor_rollout_ref.model.path"
# `talkative`: reasoning of 8 to 64 tokens, and 8 updates a batch in place of 2, so that normaliser and clipping matter.
WORLDS = {
    "tiny": (),
    "talkative": (
        f"{POLICY}={ROOT / 'talkative_policy'}",
        "data.max_response_length=112",
        "actor_rollout_ref.rollout.max_model_len=176",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.actor.ppo_epochs=2",
    ),
}
LOGGED = {"clip_low": "actor/pg_clipfrac_low", "clip_high": "actor/pg_clipfrac_high"}  # means over a run's steps
REFERENCE = "samr1"  # the variant that the others are compared with


def run_folder(world: str, name: str, seed: int, steps: int) -> Path:
    return ROOT / f"{world}_{steps}_steps" / name / str(seed)


def trained(folder: Path, title: str, overrides: Sequence[str]) -> tuple[dict[str, float], dict[str, dict[int, float]]]:
    """Train the missing part of a run. Returns the figures on the held-out test split, and the run's curves."""
    overrides = (
        *overrides,
        f"trainer.default_local_dir={folder}",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
    )
    recipe = compose_recipe(RECIPE, overrides)
    folder.mkdir(parents=True, exist_ok=True)
    console.rule(title)
    training = Training(overrides, recipe, folder, console)
    training.finish()
    return figures(score_policy(training.policy_folder(), recipe, folder / "after.json")), read_curves(folder)


def train(world: str, name: str, seed: int, steps: int, record: Path) -> dict[str, float]:
    """Figures on the held-out test split of one run; the missing part of it is trained first."""
    run = {"world": world, "steps": steps, "variant": name, "seed": seed}
    if figures := recorded(record, run):
        return figures
    own = (*WORLDS[world], *VARIANTS[name].overrides)
    overrides = (*own, f"data.seed={seed}", f"trainer.total_training_steps={steps}")
    figures, curves = trained(run_folder(world, name, seed, steps), f"{name}, seed {seed}", overrides)
    figures |= {key: statistics.fmean(curves[tag].values()) for key, tag in LOGGED.items()}
    keep(record, run, figures)
    return figures


def advantage(results: dict[str, list[dict[str, float]]], name: str) -> str:
    """SAM-R1's gIoU minus a variant's, with its interval, and the number of seeds in which SAM-R1's is higher."""
    if name == REFERENCE or REFERENCE not in results:
        return ""
    ours, other = ([run["giou"] for run in results[key]] for key in (REFERENCE, name))
    better = sum(one > two for one, two in zip(ours, other, strict=True))
    return f"{difference(ours, other)}, {better} of {len(ours)}"


def table(results: dict[str, list[dict[str, float]]], before: dict[str, float]) -> str:
    """Markdown: one row per variant."""
    lines = [
        "| variant | gIoU | SAM-R1 minus it: gIoU [95 %], seeds | cIoU | mean reward, own tiers | "
        "tokens clipped above, below (%) | paper: gIoU, cIoU (%) |",
        "|---|---|---|---|---|---|---|",
        f"| before training | {before['giou']:.3f} | | {before['ciou']:.3f} | {before['mean_reward']:.2f} | | |",
    ]
    for name, runs in results.items():
        giou, ciou, reward = (spread([run[key] for run in runs]) for key in ("giou", "ciou", "mean_reward"))
        above, below = (100 * statistics.fmean(run[key] for run in runs) for key in ("clip_high", "clip_low"))
        paper = VARIANTS[name].paper
        known = f"{paper[0]}, {paper[1]}" if paper else "collapsed after about 100 steps"
        clipped = f"{above:.3f}, {below:.3f}"
        ahead = advantage(results, name)
        lines.append(f"| {VARIANTS[name].title} | {giou} | {ahead} | {ciou} | {reward} | {clipped} | {known} |")
    return "\n".join(lines)


def main(
    seeds: Annotated[list[int], seeds_option(5)],
    steps: Annotated[int, typer.Option(min=1, help="steps of each run")] = 48,
    only: Annotated[list[str] | None, only_option(VARIANTS)] = None,
    world: Annotated[str, typer.Option(help=f"one of {', '.join(WORLDS)}")] = "tiny",
    record: Annotated[Path, typer.Option(help="JSON lines, one for each finished run")] = RECORD,
) -> None:
    """Train the missing runs and print the table. The last line is one JSON object."""
    transformers_logging.disable_progress_bar()
    if world not in WORLDS:
        raise typer.BadParameter(f"--world {world}: no such world, expected one of {', '.join(WORLDS)}")
    names = chosen(VARIANTS, only)
    recipe = compose_recipe(RECIPE, WORLDS[world])
    ROOT.mkdir(parents=True, exist_ok=True)
    policy = Path(recipe.actor_rollout_ref.model.path)
    if world == "talkative" and not (policy / "config.json").exists():
        talkative.main(policy)
    before = figures(score_policy(policy, recipe, ROOT / f"before_{world}.json"))
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in seeds:  # a whole table after each seed
        for name in names:
            results[name].append(train(world, name, seed, steps, record))
    typer.echo(table(results, before))
    typer.echo(json.dumps({"world": world, "seeds": seeds, "steps": steps, "before": before, "after": results}))


if __name__ == "__main__":
    typer.run(main)
