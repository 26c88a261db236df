"""The rewards where no recipe of ours is: in a stock verl configuration, and in TRL's GRPOTrainer; two steps each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from samr1_verl.prompts.policy_image import load_policy_image
from samr1_verl.rows.record import read_table, record_at, resolve_image
from tests.cpu.test_training import overrides

pytestmark = pytest.mark.ray

FRAME = 140
STEPS, PROMPTS, GROUP = 2, 2, 2


def verl_rows(file: Path, count: int) -> list[dict[str, Any]]:
    """Rows as verl's own data set reads them: chat messages, images by path, and what a reward receives."""
    table, rows = read_table(file), []
    for index in range(count):
        record = record_at(table, index, file)
        image = str(resolve_image(record, file))
        sentence = record.sentence.lower().removesuffix(".")
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"<image>segment {sentence}"}],
                "images": [{"image": image, "resized_width": FRAME, "resized_height": FRAME}],
                "data_source": record.data_source,
                "reward_model": {"style": "rule", "ground_truth": record.ground_truth()},
                "extra_info": {
                    "image": image,
                    "sha256": record.sha256,
                    "policy_size": [FRAME, FRAME],
                    "frame": "absolute",
                    "index": index,
                },
            }
        )
    return rows


def test_a_stock_verl_configuration_takes_a_reward_and_nothing_else_of_ours(
    tmp_path, drawn, warm_policy, small_sam, ray_folder
):
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(verl_rows(drawn / "train.parquet", STEPS * PROMPTS)), rows)
    # What the CPU of this machine needs, of a configuration that trains with another data set and reward.
    stock = dict(one.split("=", 1) for one in overrides(tmp_path, warm_policy, rows, 1, str(ray_folder)))
    for key in [key for key in stock if "custom_cls" in key or "segmentation" in key or key.endswith("ignore_eos")]:
        del stock[key]
    stock |= {
        "reward.custom_reward_function.path": "pkg://reward_fns.samr1",
        "+reward.custom_reward_function.reward_kwargs": (
            f"{{segmenter: {{backend: onnx, path: {small_sam}, device: cpu, dtype: float32,"
            " service: {mode: embedded, cache_gb: 1.0, cache_dir: null}},"
            " reward: {terms: {s_measure: 0.5, boundary_iou: 0}}}"
        ),
        "data.train_batch_size": PROMPTS,
        "data.max_response_length": 48,
        "actor_rollout_ref.actor.ppo_mini_batch_size": PROMPTS,
        "actor_rollout_ref.actor.optim.lr": 1e-5,
        "actor_rollout_ref.rollout.n": GROUP,
        "trainer.total_training_steps": STEPS,
        "trainer.test_freq": STEPS,
    }
    done = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *(f"{key}={value}" for key, value in stock.items())],
        env={**os.environ, "VERL_FILE_LOGGER_PATH": str(tmp_path / "metrics.jsonl")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    steps = [json.loads(line)["data"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [step["training/global_step"] for step in steps] == [1, 2]
    assert all(2 <= step["critic/score/mean"] <= 6.5 for step in steps), "the warmed-up policy earns both format terms"
    assert 0 < steps[-1]["val-core/shapes/acc/mean@1"] <= 1
    assert 0 <= steps[-1]["val-aux/shapes/boundary_iou/mean@1"] <= 1
    assert steps[-1]["val-aux/shapes/s_measure/mean@1"] > 0


def test_trls_trainer_takes_a_reward_through_the_adapter(tmp_path, drawn, warm_policy):
    import trl
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from reward_fns.seg_zero import compute_score
    from reward_fns.trl import trl_reward

    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"][0]["content"].removeprefix("<image>")}],
                "image": load_policy_image(row["extra_info"]["image"], (FRAME, FRAME)),
                "data_source": row["data_source"],
                "ground_truth": row["reward_model"]["ground_truth"],
                "extra_info": row["extra_info"],
            }
            for row in verl_rows(drawn / "train.parquet", STEPS * PROMPTS)
        ]
    )
    model = AutoModelForImageTextToText.from_pretrained(warm_policy)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=trl_reward(compute_score, reward={"terms": {"point_count": 0.0}}),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=STEPS,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=48,
            learning_rate=1e-4,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            seed=0,
        ),
        train_dataset=rows,
        processing_class=AutoProcessor.from_pretrained(warm_policy),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]
    assert all(2 <= entry["rewards/seg_zero/mean"] <= 5 for entry in logged), "the policy earns both format terms"
    assert all(entry["reward/point_count"] == 1 and 0 <= entry["reward/acc"] <= 1 for entry in logged)
    assert any((weight != before[name]).any() for name, weight in model.named_parameters()), "the weights moved"
