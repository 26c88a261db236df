"""Evaluation: metrics as defined, every row counted, masks from real prompts through the real small SAM."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from transformers import AutoProcessor

from reward_fns.samr1 import compute_score
from samr1_verl.evaluation import Policy, Summary, dataset_of, evaluate, predicted_mask
from samr1_verl.frames import boxes_to_policy, points_to_policy
from samr1_verl.ground_truth import GroundTruth
from samr1_verl.masks import intersection_union


@pytest.fixture
def recipe(small_sam: Path, random_policy: Path) -> DictConfig:
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            [
                "+recipe=samr1_tiny",
                f"samr1.segmenter.path={small_sam}",
                "samr1.service.cache_dir=null",
                f"actor_rollout_ref.model.path={random_policy}",
            ],
        )
    OmegaConf.set_struct(config, False)
    return config


class Oracle:
    """Answers with the true box and points in the policy frame, about every second row; else with words."""

    def answer(self, items: list[dict[str, Any]]) -> list[str]:
        return [oracle_text(item) if item["index"] % 2 == 0 else "I see nothing." for item in items]


def oracle_text(item: dict[str, Any]) -> str:
    truth = json.loads(item["reward_model"]["ground_truth"])
    geometry = (truth["size"][::-1], item["extra_info"]["policy_size"], "absolute")
    box = boxes_to_policy(truth["boxes"][0], *geometry).round().astype(int).tolist()
    one, two = points_to_policy(truth["points"][0], *geometry).round().astype(int).tolist()
    return f"<think>here</think><answer>{json.dumps({'bbox': box, 'points_1': one, 'points_2': two})}</answer>"


def test_summary_is_the_definition() -> None:
    #   row 1: I=1 U=4, row 2: I=0 U=6   gIoU = (0.25 + 0) / 2, cIoU = 1 / 10
    rows = [
        {"score": 2.0, "acc": 0.25, "format": 1.0, "intersection": 1.0, "union": 4.0},
        {"score": 0.0, "acc": 0.0, "format": 0.0, "intersection": 0.0, "union": 6.0},
    ]
    assert Summary.of(rows) == Summary(giou=0.125, ciou=0.1, format_rate=0.5, mean_reward=1.0)


async def test_true_prompts_give_true_masks_and_unusable_answers_are_empty(recipe: DictConfig, drawn: Path) -> None:
    processor = AutoProcessor.from_pretrained(recipe.actor_rollout_ref.model.path)
    rows = dataset_of(recipe, drawn / "test.parquet", processor)
    kwargs = recipe.reward.custom_reward_function.reward_kwargs
    results = await evaluate(Oracle(), rows, compute_score, kwargs, batch_size=3)
    assert [row["index"] for row in results] == list(range(8))
    ious = [row["scores"]["acc"] for row in results]
    assert min(ious[0::2]) > 0.9 and ious[1::2] == [0.0] * 4
    assert results[1]["scores"]["answer/no_answer"] == 1.0
    summary = Summary.of([row["scores"] for row in results])
    assert summary.giou == pytest.approx(np.mean(ious)) and summary.format_rate == 0.5
    assert summary.mean_reward == pytest.approx(6 / 2)

    item = rows[0]
    mask = await predicted_mask(item, oracle_text(item), kwargs)
    truth, _ = GroundTruth.model_validate_json(item["reward_model"]["ground_truth"]).union_and_ignore()
    intersection, union = intersection_union(mask, truth)
    assert intersection / union == pytest.approx(ious[0])
    assert not (await predicted_mask(item, "nothing", kwargs)).any()


async def test_a_real_policy_answers_every_row_greedily(recipe: DictConfig, drawn: Path) -> None:
    policy = Policy(recipe.actor_rollout_ref.model.path, max_new_tokens=8)
    rows = dataset_of(recipe, drawn / "test.parquet", policy.processor)
    kwargs = recipe.reward.custom_reward_function.reward_kwargs
    batched = await evaluate(policy, rows, compute_score, kwargs, batch_size=4)
    single = await evaluate(policy, rows, compute_score, kwargs, batch_size=1)
    assert len(batched) == len(rows) and batched == single, "padding does not change an answer"
