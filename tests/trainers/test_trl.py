"""TRL's GRPOTrainer: the scores of plain calls, exported rows, two training steps, and a fault of the segmenter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import trl
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.trl_grpo import rows_of
from reward_fns.trl import trl_reward
from samr1_verl.segmenters import SegmenterError
from tests.trainers.corpus import Batch, arguments, batches, compute_score
from tests.trainers.corpus import segmenter as boxes
from tests.trainers.table import check_scores

STEPS, GROUP = 2, 4


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


def test_scores_are_those_of_a_plain_call(corpus: Path, warm_policy: Path, one_row: datasets.Dataset, tmp_path: Path):
    def scores(call: Any, kwargs: dict[str, Any], batch: Batch) -> list[float]:
        if batch.item["extra_info"]["index"] == 0:
            asked[0] = trainer(warm_policy, one_row, trl_reward(call, **kwargs), tmp_path, max_steps=1)
        return through_trl(asked[0], batch)

    asked: dict[int, trl.GRPOTrainer] = {}
    check_scores(corpus, "trl", trl.__version__, scores, as_stored=lambda score: float(np.float32(score)))


def test_a_fault_of_the_segmenter_ends_the_step(
    corpus: Path, warm_policy: Path, one_row: datasets.Dataset, tmp_path: Path
) -> None:
    engine = boxes()
    engine._segmenter.fault = RuntimeError("out of memory")
    reward = trl_reward(compute_score("samr1"), **arguments("samr1", engine))
    asked = trainer(warm_policy, one_row, reward, tmp_path, max_steps=1)
    with pytest.raises(SegmenterError, match="out of memory"):
        through_trl(asked, next(batches(corpus, "samr1")))
    engine.close()


def test_two_steps_with_exported_rows_and_the_small_sam(
    exported: Callable[[str], Path], warm_policy: Path, small_sam: Path, tmp_path: Path
) -> None:
    rows = rows_of(exported("trl"))
    assert rows[0]["image"].size == (140, 140) and isinstance(rows[0]["image"], Image.Image)
    service = {"mode": "embedded", "cache_gb": 1.0, "cache_dir": None}
    segmenter = {"backend": "onnx", "path": str(small_sam), "device": "cpu", "dtype": "float32", "service": service}
    asked = trainer(
        warm_policy,
        rows,
        trl_reward(compute_score("samr1"), segmenter=segmenter, reward={"terms": {"s_measure": 0}}),
        tmp_path,
        max_steps=STEPS,
        learning_rate=1e-4,
        logging_steps=1,
    )
    before = {name: weight.detach().clone() for name, weight in asked.model.named_parameters()}
    asked.train()
    logged = [entry for entry in asked.state.log_history if "reward" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]
    assert all(2 <= entry["rewards/samr1/mean"] <= 6 for entry in logged), "the policy earns both format terms"
    assert all(0 < entry["reward/acc"] <= 1 and 0 < entry["reward/s_measure"] <= 1 for entry in logged)
    assert any((weight != before[name]).any() for name, weight in asked.model.named_parameters()), "the weights moved"
