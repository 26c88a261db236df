"""The runs of a policy that looks at its mask, beside those of one turn: what is compared, and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import refine
from samr1_verl.config import samr1_config
from samr1_verl.policies.inference_config import compose_recipe
from samr1_verl.preflight import checks
from tests.evaluation.samples import samples_of

DIALOGUE = {"giou": [0.4, 0.5], "missed": [0.4, 0.2], "turns": 2.5, "done": 0.75, "tokens": 90.0, "format_rate": 1.0}
SPENT = {"rollouts": 64.0, "rollout_turns": 160.0}


@pytest.mark.thorough
@pytest.mark.parametrize("name", refine.VARIANTS)
def test_every_variant_is_a_recipe_that_may_start_from_the_same_policy(name: str) -> None:
    variant = refine.VARIANTS[name]
    recipe = compose_recipe(variant.recipe, variant.overrides)
    samr1_config(recipe)
    found = (checks.check_types, checks.check_objective, checks.check_lengths, checks.check_micro_batches)
    assert [problem for check in found for problem in check(recipe)] == []
    assert recipe.actor_rollout_ref.model.path == compose_recipe(refine.REFINE).actor_rollout_ref.model.path
    assert recipe.samr1.objective.shuffle_rewards == (name == "shuffled")


@pytest.mark.thorough
def test_variants_have_equal_rollouts_and_turns_of_equal_length() -> None:
    recipes = [compose_recipe(variant.recipe, variant.overrides) for variant in refine.VARIANTS.values()]
    rollouts = {recipe.data.train_batch_size * recipe.actor_rollout_ref.rollout.n for recipe in recipes}
    lengths = {refine.InferenceConfig.of(recipe).max_new_tokens for recipe in recipes}
    assert len(rollouts) == len(lengths) == 1
    assert compose_recipe(refine.REFINE).samr1.refine.max_turns == refine.LONGER


def test_one_turn_has_a_single_giou() -> None:
    samples = [sample.model_copy(update={"tokens": 30}) for sample in samples_of([20, 10, 0, 10])]
    found = refine.figures_of(samples)
    assert found == {"giou": [0.5], "missed": [0.25], "turns": 1.0, "done": 0.0, "tokens": 30.0, "format_rate": 0.75}


def test_cost_is_counted_from_the_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    curves: dict[str, Any] = {"reward/acc": {1: 0.5, 2: 0.6}, "reward/turns": {1: 2.0, 2: 3.0}}
    monkeypatch.setattr(refine, "read_curves", lambda folder: curves)
    recipe = compose_recipe(refine.REFINE, ["data.train_batch_size=4", "actor_rollout_ref.rollout.n=8"])
    assert refine.spent(Path(), recipe) == {"rollouts": 64.0, "rollout_turns": 160.0}
    del curves["reward/turns"]
    assert refine.spent(Path(), recipe) == {"rollouts": 64.0, "rollout_turns": 64.0}


def test_finished_runs_are_read_and_compared_seed_by_seed(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    runs: dict[str, list[Any]] = {"refine": [], "one_turn": []}
    for name, seed, giou in (("refine", 1, 0.7), ("refine", 2, 0.9), ("one_turn", 1, 0.6), ("one_turn", 2, 0.6)):
        own = (
            {"giou": [0.5, giou]} if name == "refine" else {"giou": [giou], "missed": [0.1], "turns": 1.0, "done": 0.0}
        )
        run = {"steps": 9, "variant": name, "seed": seed}
        with record.open("a") as lines:
            lines.write(json.dumps({"run": run, "figures": DIALOGUE | SPENT | own}) + "\n")
        runs[name].append(refine.train(name, seed, 9, record))  # nothing is trained again
    lines = refine.table(runs, DIALOGUE).splitlines()
    assert lines[2] == "| before training | 0.400, 0.500 |  | 40%, 20% | 2.50 | 75% | 90 |  |"
    assert lines[3] == (
        "| looks at its mask | 0.500 ± 0.000, 0.800 ± 0.141 |  | 40%, 20% | 2.50 | 75% | 90 | 64, 0.2 |"
    )
    # Differences 0.1 and 0.3: mean 0.2, standard error 0.1, Student's t of one degree of freedom 12.706.
    assert "| 0.600 ± 0.000 | +0.200 [-1.071, +1.471] | 10% | 1.00 | 0% |" in lines[4]


def test_an_unknown_variant_is_named_before_anything_runs() -> None:
    with pytest.raises(typer.BadParameter, match=r"--only ppo: ") as found:
        refine.main(seeds=[1], only=["ppo"])
    assert "refine, shuffled" in str(found.value)
