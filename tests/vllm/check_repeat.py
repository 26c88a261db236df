"""Two trainings with vLLM's CPU build as the rollout have the same answers, rewards and weights.

vLLM computes requests together as they arrive, and its CPU build has no batch-invariant mode. So the log-probs of an
answer differ in their last bits. Training does not use them.
"""

from __future__ import annotations

from pathlib import Path

from samr1_verl.regress.golden import Golden
from samr1_verl.regress.training import Run
from tests.regress.commands import regress
from tests.regress.golden_files import furnish
from tests.vllm.settings import RECIPE, VLLM_ON_CPU

ROLLOUT = ("training/rollout_", "rollout_corr/")  # metrics of the rollout's own log-probs
BOUND = 1e-6


def differences(one: Run, two: Run) -> dict[str, float]:
    """The largest difference of each metric that differs."""
    assert {step: sorted(values) for step, values in one.metrics.items()} == {
        step: sorted(values) for step, values in two.metrics.items()
    }
    found: dict[str, float] = {}
    for step, values in one.metrics.items():
        for name, value in values.items():
            if (other := two.metrics[step][name]) != value:
                found[name] = max(found.get(name, 0.0), abs(other - value))
    return found


def test_two_trainings_have_the_same_answers_and_weights(tmp_path: Path, drawn: Path, small_sam: Path) -> None:
    place = furnish(tmp_path / "root", drawn, small_sam)
    runs = []
    for name in ("one.json", "two.json"):
        regress(place, "record", RECIPE, *VLLM_ON_CPU, "--steps=2", "--repeat=0", f"--out={name}")
        runs.append(Golden.load(place / name).run)
    one, two = runs
    assert (one.samples, one.weights) == (two.samples, two.weights)
    assert all(name.startswith(ROLLOUT) and value < BOUND for name, value in differences(one, two).items())
