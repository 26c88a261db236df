"""A policy that looks at its masks, with vLLM as the rollout: log-probs agree on the tokens of every turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training_runs import World
from tests.vllm.settings import VLLM_ON_CPU

STEPS = 2
ROOT = Path(__file__).resolve().parents[2]


def test_log_probs_of_rollout_and_actor_agree_on_every_turn(
    world: World, refine_policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the module that bars tokens
    world.train(
        "samr1_refine_tiny",
        refine_policy,
        *VLLM_ON_CPU,
        "actor_rollout_ref.model.external_lib=tests.vllm.barred",
        f"trainer.total_training_steps={STEPS}",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
    )
    metrics = world.logged()
    with capsys.disabled():
        for tag in ("training/rollout_probs_diff_max", "reward/turns", "reward/acc/turn_1", "reward/acc"):
            print(f"\n{tag:45}", *(f"{metrics[tag][step]:<9.3g}" for step in (1, 2)), end="")
    assert min(metrics["reward/turns"].values()) > 1.2, "sequences have the images of several turns"
    for step in range(1, STEPS + 1):
        assert metrics["training/rollout_probs_diff_valid"][step] == 1
        assert metrics["training/rollout_probs_diff_max"][step] < 1e-4
    assert min(metrics["actor/grad_norm"].values()) > 0
