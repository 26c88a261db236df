"""What docs/reproduce.md says of other ways to run: two runs with each are equal to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.regress.commands import regress
from tests.regress.golden_files import furnish

pytestmark = pytest.mark.ray

WORKERS = (
    "trainer.n_gpus_per_node=2",
    "ray_kwargs.ray_init.num_gpus=2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=32",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=32",
)
ADAPTER = (
    "actor_rollout_ref.model.lora_rank=8",
    "actor_rollout_ref.model.lora_alpha=16",
    "actor_rollout_ref.model.lora.merge=true",
)
REPLACED = ("algorithm.filter_groups.enable=true",)


def test_two_workers_with_an_adapter_and_replaced_groups_repeat(tmp_path: Path, drawn: Path, small_sam: Path) -> None:
    """All in one training, so that each of them repeats."""
    place = furnish(tmp_path / "root", drawn, small_sam)
    regress(place, "record", "samr1_tiny", *WORKERS, *ADAPTER, *REPLACED, "--steps=2", "--repeat=0")
    assert regress(place, "check", "golden.json") == {"ok": True, "comparison": "exact"}
