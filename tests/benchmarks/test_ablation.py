"""The ablation's variants are what their titles say, and what finished is not trained again."""

from __future__ import annotations

import json

import pytest
import typer

from benchmarks import ablation
from samr1_verl.config import samr1_config
from samr1_verl.policies.inference_config import compose_recipe
from samr1_verl.preflight import checks

SCORES = {"score": 3.0, "acc": 0.25, "format": 1.0, "intersection": 5.0, "union": 10.0}
FIGURES = {"giou": 0.5, "ciou": 0.4, "format_rate": 1.0, "mean_reward": 4.0}
CURVES = {"actor/pg_clipfrac_low": {1: 0.0, 2: 0.002}, "actor/pg_clipfrac_high": {1: 0.001, 2: 0.003}}


def train_to(monkeypatch, figures):
    """Replace the training by one that ends with these figures."""
    monkeypatch.setattr(ablation, "trained", lambda *_: (dict(figures), CURVES))


@pytest.mark.thorough
@pytest.mark.parametrize("world", ablation.WORLDS)
@pytest.mark.parametrize("name", ablation.VARIANTS)
def test_every_variant_is_a_recipe_that_may_start(name, world):
    recipe = compose_recipe(ablation.RECIPE, (*ablation.WORLDS[world], *ablation.VARIANTS[name].overrides))
    samr1_config(recipe)
    found = (
        checks.check_types,
        checks.check_objective,
        checks.check_lengths,
        checks.check_micro_batches,
        checks.advice,
    )
    assert [problem for check in found for problem in check(recipe)] == []


@pytest.mark.thorough
def test_the_variants_change_what_their_titles_name():
    def keys(name):
        recipe = compose_recipe(ablation.RECIPE, ablation.VARIANTS[name].overrides)
        actor = recipe.actor_rollout_ref.actor
        paid = {iou: score for iou, score in recipe.samr1.reward.thresholds.items() if score}
        return (
            actor.policy_loss.normalizer,
            actor.clip_ratio_high,
            min(paid),
            len(set(paid.values())),
            actor.use_kl_loss,
        )

    assert {name: keys(name) for name in ablation.VARIANTS} == {
        "grpo": ("sequence", 0.2, 0.5, 3, True),
        "group": ("group", 0.2, 0.5, 3, True),
        "high_clip": ("sequence", 0.3, 0.5, 3, True),
        "samr1": ("group", 0.3, 0.5, 3, True),
        "fixed_0.5": ("group", 0.3, 0.5, 1, True),
        "fixed_0.7": ("group", 0.3, 0.7, 1, True),
        "fixed_0.8": ("group", 0.3, 0.8, 1, True),
        "no_kl": ("group", 0.3, 0.5, 3, False),
    }


def test_finished_runs_are_read_and_their_spread_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "ROOT", tmp_path)
    monkeypatch.setattr(ablation, "score_policy", lambda *_: [{"scores": dict(SCORES)}])
    record = tmp_path / "record.jsonl"
    for name, gious in {"grpo": (0.4, 0.7), "samr1": (0.5, 0.7)}.items():
        for seed, giou in enumerate(gious, start=1):
            train_to(monkeypatch, FIGURES | {"giou": giou})
            ablation.train("tiny", name, seed, steps=9, record=record)
    monkeypatch.setattr(ablation, "trained", None)  # nothing is trained again
    ablation.main(seeds=[1, 2], steps=9, only=["grpo", "samr1"], record=record)
    *shown, last = capsys.readouterr().out.splitlines()
    assert shown[2].startswith("| before training | 0.250 | | 0.500 | 3.00 |")
    # Differences 0.1 and 0: mean 0.05, standard error 0.05, Student's t of one degree of freedom 12.706.
    assert "| 0.550 ± 0.212 | +0.050 [-0.585, +0.685], 1 of 2 | 0.400 ± 0.000 | 4.000 ± 0.000 |" in shown[3]
    assert "| 0.600 ± 0.141 |  | 0.400 ± 0.000 | 4.000 ± 0.000 | 0.200, 0.100 | 60.2, 54.3 |" in shown[4]
    assert [run["giou"] for run in json.loads(last)["after"]["samr1"]] == [0.5, 0.7]


def test_another_run_is_not_taken_for_a_recorded_one(tmp_path, monkeypatch):
    record = tmp_path / "record.jsonl"
    train_to(monkeypatch, FIGURES)
    ablation.train("tiny", "samr1", 1, steps=9, record=record)
    train_to(monkeypatch, FIGURES | {"giou": 0.9})
    others = [("talkative", "samr1", 1, 9), ("tiny", "grpo", 1, 9), ("tiny", "samr1", 2, 9), ("tiny", "samr1", 1, 8)]
    assert {ablation.train(*run, record)["giou"] for run in others} == {0.9}
    assert ablation.train("tiny", "samr1", 1, 9, record)["giou"] == 0.5


def test_an_unknown_variant_is_named_before_anything_runs():
    with pytest.raises(typer.BadParameter, match=r"--only dapo: ") as found:
        ablation.main(seeds=[1], steps=1, only=["dapo"])
    assert "grpo, group" in str(found.value)
    with pytest.raises(typer.BadParameter, match=r"--world large: .*talkative"):
        ablation.main(seeds=[1], steps=1, world="large")
