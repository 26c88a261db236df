"""A training whose policy looks at its masks: two runs are equal, rollout and actor agree on every turn's tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from samr1_verl.regress.training import UNREPEATABLE, digest_of_state
from tests.training_runs import World

pytestmark = pytest.mark.thorough

STEPS = (
    "trainer.total_training_steps=2",
    "trainer.save_freq=2",
    "trainer.test_freq=2",
    "trainer.val_before_train=false",
)


def test_two_runs_are_equal_and_log_probs_agree_on_every_turn(world: World, refine_policy: Path) -> None:
    runs = [replace(world, run=world.run.parent / name) for name in ("first", "second")]
    for run in runs:
        run.train("samr1_refine_tiny", refine_policy, *STEPS, f"trainer.rollout_data_dir={run.run / 'rollouts'}")
    logged = [{tag: values for tag, values in run.logged().items() if not tag.startswith(UNREPEATABLE)} for run in runs]
    assert logged[0] == logged[1]
    digests = [digest_of_state(run.run / "global_step_2") for run in runs]
    assert digests[0] == digests[1]
    assert max(logged[0]["training/rollout_probs_diff_max"].values()) < 1e-4
    assert min(logged[0]["reward/turns"].values()) > 1.2, "the policy looks at its masks"
    for turn in (1, 2, 3):
        assert sorted(logged[0][f"reward/acc/turn_{turn}"]) == [1, 2]
    assert logged[0]["reward/acc/turn_3"] == logged[0]["reward/acc"]
    lines = (runs[0].run / "rollouts" / "1.jsonl").read_text().splitlines()
    assert any(json.loads(line)["output"].count("<answer>") > 1 for line in lines)
