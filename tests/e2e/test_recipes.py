"""The tiny variants of the other methods train through verl's own command: two steps, two rollouts a prompt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMEOUT_S = 900
CHECKPOINTS = Path(__file__).resolve().parents[2] / "data" / "checkpoints"
STEPS = 2

# Policy, and a component that the warmed-up policy earns in some of its sixteen answers.
RECIPES = {
    "seg_zero_tiny": ("tiny_policy", "points"),
    "vision_reasoner_tiny": ("tiny_policy_list", "accuracy"),
    "star_tiny": ("tiny_policy_list", "mask"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_tiny_variant_trains_two_steps(recipe, tmp_path, drawn, small_sam, ray_folder):
    policy, component = RECIPES[recipe]
    command = [
        *(sys.executable, "-m", "verl.trainer.main_ppo", f"+recipe={recipe}"),
        f"trainer.total_training_steps={STEPS}",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
        f"trainer.default_local_dir={tmp_path / 'run'}",
        "data.train_batch_size=4",
        f"data.train_files={drawn / 'train.parquet'}",
        f"data.val_files={drawn / 'val.parquet'}",
        f"actor_rollout_ref.model.path={CHECKPOINTS / policy}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.n=2",
        f"samr1.segmenter.path={small_sam}",
        "samr1.service.cache_dir=null",
        f"+ray_kwargs.ray_init._temp_dir={ray_folder}",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert len(logged["reward/score"]) == STEPS
    assert min(logged["reward/think"]) > 0
    assert sum(logged[f"reward/{component}"]) > 0, "the warmed-up policy earns more than its format"
    assert sum(logged["actor/grad_norm"]) > 0
    assert max(logged["training/rollout_probs_diff_max"]) < 1e-4
