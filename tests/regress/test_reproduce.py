"""What docs/reproduce.md says of other ways to run: two runs with each are equal to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from samr1_verl.regress.golden import Golden
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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, drawn: Path, small_sam: Path) -> Path:
    """A folder with golden.json of all in one training, so that each of them repeats."""
    place = furnish(tmp_path_factory.mktemp("reproduce") / "root", drawn, small_sam)
    regress(place, "record", "samr1_tiny", *WORKERS, *ADAPTER, *REPLACED, "--steps=2", "--repeat=0")
    return place


def test_two_workers_with_an_adapter_and_replaced_groups_train(place: Path) -> None:
    golden = Golden.load(place / "golden.json")
    for step in (1, 2):
        metrics = golden.run.metrics[step]
        assert 0 < metrics["actor/grad_norm"] < float("inf")
        # The adapter's weights reach both rollout servers; verl rounds merged weights to bfloat16.
        assert metrics["training/rollout_actor_probs_pearson_corr"] > 0.9999
        assert metrics["training/rollout_probs_diff_max"] < 0.05
        assert metrics["training/lost_rollouts"] == 0


@pytest.mark.thorough
def test_they_repeat(place: Path) -> None:
    assert regress(place, "check", "golden.json") == {"ok": True, "comparison": "exact"}
