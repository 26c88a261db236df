"""What docs/reproduce.md says of other ways to run: two runs with each are equal to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.regress.commands import regress
from tests.regress.golden_files import furnish

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

WAYS = {
    "two workers, replaced groups": (
        "algorithm.filter_groups.enable=true",
        "trainer.n_gpus_per_node=2",
        "ray_kwargs.ray_init.num_gpus=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=32",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=32",
    ),
    "LoRA": (
        "actor_rollout_ref.model.lora_rank=8",
        "actor_rollout_ref.model.lora_alpha=16",
        "actor_rollout_ref.model.lora.merge=true",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_two_runs_are_equal_to_the_bit(way: str, tmp_path: Path, drawn: Path, small_sam: Path) -> None:
    place = furnish(tmp_path / "root", drawn, small_sam)
    regress(place, "record", "samr1_tiny", *WAYS[way], "--steps=2", "--repeat=0")
    assert regress(place, "check", "golden.json") == {"ok": True, "comparison": "exact"}
