"""TRL's GRPOTrainer: the scores of plain calls, exported rows, two training steps, and a fault of the segmenter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import trl
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from reward_fns.trl import trl_reward
from samr1_verl.segmenters import SegmenterError
from tests.conftest import ROOT
from tests.errors import refused
from tests.trainers.corpus import Batch, arguments, batches, compute_score
from tests.trainers.corpus import segmenter as boxes
from tests.trainers.table import check_scores

GROUP = 4


def trainer(policy: Path, rows: datasets.Dataset, reward: Any, out: Path, **settings: Any) -> trl.GRPOTrainer:
    return trl.GRPOTrainer(
        AutoModelForImageTextToText.from_pretrained(policy),
        reward_funcs=reward,
        args=trl.GRPOConfig(
            output_dir=str(out),
            per_device_train_batch_size=2 * GROUP,
            num_generations=GROUP,
            max_completion_length=48,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            seed=0,
            **settings,
        ),
        train_dataset=rows,
        processing_class=AutoProcessor.from_pretrained(policy),
    )


@pytest.fixture(scope="module")
def one_row(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    """GRPOTrainer wants a data set, also where only its rewards are asked."""
    return datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": "a"}]}] * 8)


def through_trl(asked: trl.GRPOTrainer, batch: Batch) -> list[float]:
    """The scores of a batch by the trainer's own call of its rewards."""
    item, count = batch.item, len(batch.answers)
    columns = {"data_source": item["data_source"], "ground_truth": item["reward_model"]["ground_truth"]}
    inputs = [{**columns, "prompt": item["raw_prompt"], "extra_info": item["extra_info"]}] * count
    completions = [[{"role": "assistant", "content": text}] for text in batch.answers]
    found = asked._calculate_rewards(inputs, [item["raw_prompt"]] * count, completions, [[0]] * count)
    return [float(value) for value in found[:, 0]]


@pytest.mark.slow
def test_scores_are_those_of_a_plain_call(corpus: Path, warm_policy: Path, one_row: datasets.Dataset, tmp_path: Path):
    def scores(call: Any, kwargs: dict[str, Any], batch: Batch) -> list[float]:
        if batch.item["extra_info"]["index"] == 0:
            asked[0] = trainer(warm_policy, one_row, trl_reward(call, **kwargs), tmp_path, max_steps=1)
        return through_trl(asked[0], batch)

    asked: dict[int, trl.GRPOTrainer] = {}
    check_scores(corpus, "trl", trl.__version__, scores, as_stored=lambda score: float(np.float32(score)))


@pytest.mark.slow
def test_a_fault_of_the_segmenter_ends_the_step(
    corpus: Path, warm_policy: Path, one_row: datasets.Dataset, tmp_path: Path
) -> None:
    engine = boxes()
    engine._segmenter.fault = RuntimeError("out of memory")
    reward = trl_reward(compute_score("samr1"), **arguments("samr1", engine))
    asked = trainer(warm_policy, one_row, reward, tmp_path, max_steps=1)
    with refused(SegmenterError, "encode_failed", "out of memory"):
        through_trl(asked, next(batches(corpus, "samr1")))
    engine.close()


@pytest.mark.slow
def test_two_steps_of_the_example_with_exported_rows_and_the_small_sam(
    exported: Callable[[str], Path], warm_policy: Path, small_sam: Path, tmp_path: Path
) -> None:
    settings = {
        "rows": exported("trl"),
        "model": warm_policy,
        "sam": small_sam,
        "sam_backend": "onnx",
        "output_dir": tmp_path,
        "max_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2 * GROUP,
        "num_generations": GROUP,
        "max_completion_length": 48,
        "learning_rate": 1e-4,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
    }
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, ROOT / "examples" / "trl_grpo.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    history = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in history if "reward" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]
    assert all(2 <= entry["rewards/samr1/mean"] <= 6 for entry in logged), "the policy earns both format terms"
    assert all(0 < entry["reward/acc"] <= 1 for entry in logged)
    before, after = (load_file(folder / "model.safetensors") for folder in (warm_policy, tmp_path / "checkpoint-2"))
    assert any((before[name] != after[name]).any() for name in before.keys() & after.keys()), "the weights moved"
