"""verl's own main_ppo trains on the CPU backend, alone and with two workers that talk through gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.row_files import make_record, write_rows

pytestmark = [pytest.mark.ray, pytest.mark.thorough]

STEPS, PROMPTS, GROUP, TOKENS = 2, 4, 4, 12

REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs):
    return {"score": float(sum(map(ord, solution_str)) % 5), "acc": 0.0}
"""


def overrides(folder: Path, policy: Path, rows: Path, world_size: int, temp_dir: str) -> list[str]:
    """What verl's defaults need to run here, without a recipe of ours."""
    return [
        f"data.train_files={rows}",
        f"data.val_files={rows}",
        f"data.train_batch_size={PROMPTS}",
        "data.max_prompt_length=64",
        f"data.max_response_length={TOKENS}",
        "data.dataloader_num_workers=0",
        "data.custom_cls.path=pkg://samr1_verl.training.dataset",
        "data.custom_cls.name=SegmentationDataset",
        "+data.segmentation={policy_size: [140, 140], frame: absolute, prompt: tiny}",
        f"reward.custom_reward_function.path={folder}/reward.py",
        "reward.num_workers=1",
        "algorithm.adv_estimator=grpo",
        f"actor_rollout_ref.model.path={policy}",
        "actor_rollout_ref.model.use_remove_padding=false",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "actor_rollout_ref.actor.use_torch_compile=false",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS // 2}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.rollout.name=transformers",
        "actor_rollout_ref.rollout.dtype=float32",
        f"actor_rollout_ref.rollout.n={GROUP}",
        "actor_rollout_ref.rollout.temperature=0.8",
        "actor_rollout_ref.rollout.ignore_eos=true",
        "actor_rollout_ref.rollout.calculate_log_probs=true",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "trainer.device=cpu",
        f"trainer.n_gpus_per_node={world_size}",
        "trainer.logger=[file]",
        f"trainer.total_training_steps={STEPS}",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        f"trainer.default_local_dir={folder}/checkpoints",
        f"ray_kwargs.ray_init.num_cpus={6 + 4 * world_size}",
        f"+ray_kwargs.ray_init.num_gpus={world_size}",
        "+ray_kwargs.ray_init.include_dashboard=false",
        f"+ray_kwargs.ray_init._temp_dir={temp_dir}",
        f"hydra.run.dir={folder}/hydra",
    ]


def train(folder: Path, policy: Path, world_size: int) -> list[dict[str, Any]]:
    """The metrics of each step of a run whose sequences are all equally long: one sentence, and answers without end."""
    records = [make_record(folder, f"{i}.png", size_wh=(64 + i, 48)) for i in range(PROMPTS * STEPS)]
    rows = write_rows(folder / "rows.parquet", *records)
    (folder / "reward.py").write_text(REWARD)
    metrics, log = folder / "metrics.jsonl", folder / "log.txt"
    with tempfile.TemporaryDirectory(prefix="samr1-") as temp_dir, log.open("w") as output:  # Ray wants a short path
        done = subprocess.run(
            [sys.executable, "-m", "verl.trainer.main_ppo", *overrides(folder, policy, rows, world_size, temp_dir)],
            env={**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics)},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            check=False,
        )
    assert done.returncode == 0, log.read_text()[-5000:]
    return [json.loads(line)["data"] for line in metrics.read_text().splitlines()]


@pytest.mark.parametrize("world_size", [1, 2])
def test_main_ppo_trains(random_policy: Path, tmp_path: Path, world_size: int) -> None:
    steps = train(tmp_path, random_policy, world_size)
    assert [step["training/global_step"] for step in steps] == list(range(1, STEPS + 1))
    for step in steps:
        assert step["response_length/min"] == step["response_length/max"] == TOKENS
        assert step["prompt_length/min"] == step["prompt_length/max"]
        assert 0 < step["actor/grad_norm"] < float("inf")
        # Of the second step too: then the rollout has the actor's new weights, which are not the reference's.
        assert step["training/rollout_probs_diff_max"] <= 1e-4
        assert abs(step["rollout_corr/log_ppl_diff_max"]) <= 1e-4
        assert abs(step["rollout_corr/log_ppl_diff_min"]) <= 1e-4
    assert steps[-1]["actor/kl_loss"] > 0.01
