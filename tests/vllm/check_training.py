"""verl's own command trains the tiny policy for five steps with vLLM as the rollout and the small SAM as the reward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training_runs import World
from tests.vllm.settings import RECIPE, VLLM_ON_CPU

STEPS = 5


@pytest.fixture
def run(world: World, warm_policy: Path) -> World:
    """A finished run of five steps, validated before the first and after the last."""
    world.train(
        RECIPE,
        warm_policy,
        *VLLM_ON_CPU,
        f"trainer.total_training_steps={STEPS}",
        "trainer.total_epochs=2",
        "trainer.save_freq=-1",
        f"trainer.test_freq={STEPS}",
        "trainer.val_before_train=true",
        f"trainer.validation_data_dir={world.run / 'validation'}",
    )
    return world


def greedy_answers(folder: Path, step: int) -> list[str]:
    lines = (folder / "validation" / f"{step}.jsonl").read_text().splitlines()
    return [json.loads(line)["output"] for line in lines]


def test_trains_through_verls_vllm_server(run: World, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run.logged()
    steps = list(range(1, STEPS + 1))
    shown = ("training/rollout_probs_diff_mean", "training/rollout_probs_diff_max",
             "training/rollout_actor_probs_pearson_corr", "actor/kl_loss", "actor/grad_norm", "reward/score",
             "reward/acc", "timing_s/step", "timing_s/update_weights")  # fmt: skip
    with capsys.disabled():
        for tag in shown:
            print(f"\n{tag:45}", *(f"{metrics[tag][step]:<9.3g}" for step in steps), end="")

    # The rollout's log-probs are the actor's: at step 1 with the first weights, from step 2 on with updated ones.
    for step in steps:
        assert metrics["training/rollout_probs_diff_valid"][step] == 1
        assert metrics["training/rollout_probs_diff_max"][step] < 1e-4
        assert metrics["training/rollout_actor_probs_pearson_corr"][step] > 0.9999

    # By then the actor is another one than at the start, or the comparison would mean nothing.
    assert min(metrics["actor/grad_norm"].values()) > 0
    assert metrics["actor/kl_loss"][STEPS] > 1e-4
    assert min(metrics["critic/groups/zero_advantage_frac"].values()) < 1, "masks of different quality in a group"
    assert max(metrics["reward/acc"].values()) > 0.1, "the small SAM found masks"

    before, after = greedy_answers(run.run, 0), greedy_answers(run.run, STEPS)
    assert len(before) == len(after) > 0
    assert before != after, "updated weights change the greedy answers"
    assert sorted(metrics["val-core/shapes/acc/mean@1"]) == [0, STEPS]
