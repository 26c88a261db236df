"""The tiny variants of the other methods train through verl's own command: two steps, two rollouts a prompt."""

from pathlib import Path

import pytest

from tests.training_runs import World

CHECKPOINTS = Path(__file__).resolve().parents[2] / "data" / "checkpoints"
STEPS = 2

# Policy, and a component that the warmed-up policy earns in some of its sixteen answers.
RECIPES = {
    "seg_zero_tiny": ("tiny_policy", "points"),
    "vision_reasoner_tiny": ("tiny_policy_list", "accuracy"),
    "star_tiny": ("tiny_policy_list", "mask"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_tiny_variant_trains_two_steps(recipe: str, world: World) -> None:
    policy, component = RECIPES[recipe]
    world.train(
        recipe,
        CHECKPOINTS / policy,
        f"trainer.total_training_steps={STEPS}",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
        "data.train_batch_size=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.n=2",
    )
    logged = {tag: list(values.values()) for tag, values in world.logged().items()}
    assert len(logged["reward/score"]) == STEPS
    assert min(logged["reward/think"]) > 0
    assert sum(logged[f"reward/{component}"]) > 0, "the warmed-up policy earns more than its format"
    assert sum(logged["actor/grad_norm"]) > 0
    assert max(logged["training/rollout_probs_diff_max"]) < 1e-4
