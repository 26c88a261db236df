"""Every tiny recipe trains three steps as its golden file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from samr1_verl.regress.golden import Golden, Place, first_difference
from tests.regress.commands import regress
from tests.regress.golden_files import FOLDER, RECIPES, REPETITIONS, STEPS, furnish

# A component that the warmed-up policy earns in some of its answers.
EARNED = {"samr1_tiny": "seg", "seg_zero_tiny": "points", "vision_reasoner_tiny": "accuracy", "star_tiny": "mask"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_golden_file_is_of_a_training_that_learns(recipe: str) -> None:
    golden = Golden.load(FOLDER / f"{recipe}.json")
    assert (golden.recipe, golden.overrides, golden.steps, len(golden.repetitions)) == (recipe, [], STEPS, REPETITIONS)
    runs = [golden.run, *golden.repetitions]
    for run in runs:
        steps = [run.metrics[step] for step in range(1, STEPS + 1)]
        assert min(step["reward/think"] for step in steps) > 0
        assert sum(step[f"reward/{EARNED[recipe]}"] for step in steps) > 0
        assert sum(step["actor/grad_norm"] for step in steps) > 0
        assert max(step["training/rollout_probs_diff_max"] for step in steps) < 1e-4
        assert 0 in run.metrics and sorted(run.samples) == list(range(1, STEPS + 1))
    assert len({run.weights for run in runs}) == len(runs), "other seeds give other weights"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_repetition_with_another_seed_is_no_equal_run(recipe: str) -> None:
    golden = Golden.load(FOLDER / f"{recipe}.json")
    for other in golden.repetitions:
        found = first_difference(golden, other, exact=True)
        assert found is not None and found.step <= 1
        assert first_difference(golden, other, exact=False) is None, "it is one of the tolerated runs"


@pytest.mark.ray
@pytest.mark.thorough  # tests/e2e/test_training.py holds samr1_tiny against its file, killed and resumed
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_tiny_recipe_trains_as_recorded(recipe: str, tmp_path: Path, drawn: Path, small_sam: Path) -> None:
    """On another processor or with other versions, the comparison is within the recorded repetitions, and says so."""
    place = furnish(tmp_path / "root", drawn, small_sam)
    outcome = regress(place, "check", str(FOLDER / f"{recipe}.json"))
    differs = Golden.load(FOLDER / f"{recipe}.json").place.differences(Place.here())
    assert outcome == {"ok": True, "comparison": "tolerance" if differs else "exact"}
