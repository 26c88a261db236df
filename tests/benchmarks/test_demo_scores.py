"""The demo's figures: as defined, over every row, from the masks that the answers' prompts make."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from benchmarks.demo_scores import Summary, predicted_mask, rows_of, score_rows
from samr1_verl.geometry.frames import boxes_to_policy, points_to_policy
from samr1_verl.geometry.masks import intersection_union
from samr1_verl.policies.checkpoints import Files
from samr1_verl.policies.inference_config import compose_recipe
from samr1_verl.policies.local import LocalPolicy
from samr1_verl.rows.ground_truth import GroundTruth
from tests.evaluation.world import RulePolicy


@pytest.fixture
def recipe(small_sam: Path, warm_policy: Path) -> DictConfig:
    paths = {"samr1.segmenter.path": small_sam, "actor_rollout_ref.model.path": warm_policy}
    return compose_recipe(
        "samr1_tiny", [f"{key}={path}" for key, path in paths.items()] + ["samr1.segmenter.service.cache_dir=null"]
    )


def truth_or_words(item: Mapping[str, Any], seed: int = 0) -> str:
    """The true box and points in the policy frame about every second row; else words."""
    return oracle_text(item) if item["index"] % 2 == 0 else "I see nothing."


def oracle_text(item: Mapping[str, Any]) -> str:
    truth = json.loads(item["reward_model"]["ground_truth"])
    geometry = (truth["size"][::-1], item["extra_info"]["policy_size"], "absolute")
    box = boxes_to_policy(truth["boxes"][0], *geometry).round().astype(int).tolist()
    first, second = points_to_policy(truth["points"][0], *geometry).round().astype(int).tolist()
    return f"<think>here</think><answer>{json.dumps({'bbox': box, 'points_1': first, 'points_2': second})}</answer>"


def test_summary_is_the_definition() -> None:
    #   row 1: I=1 U=4, row 2: I=0 U=6   gIoU = (0.25 + 0) / 2, cIoU = 1 / 10
    rows = [
        {"score": 2.0, "acc": 0.25, "format": 1.0, "intersection": 1.0, "union": 4.0},
        {"score": 0.0, "acc": 0.0, "format": 0.0, "intersection": 0.0, "union": 6.0},
    ]
    assert Summary.of(rows) == Summary(giou=0.125, ciou=0.1, format_rate=0.5, mean_reward=1.0)


@pytest.mark.slow
def test_true_prompts_give_true_masks_and_unusable_answers_are_empty(recipe: DictConfig, drawn: Path) -> None:
    rows = rows_of(recipe, drawn / "test.parquet")
    results = score_rows(RulePolicy(truth_or_words), rows, recipe)
    assert [row["index"] for row in results] == list(range(8))
    ious = [row["scores"]["acc"] for row in results]
    assert min(ious[0::2]) > 0.9 and ious[1::2] == [0.0] * 4
    assert results[1]["scores"]["answer/no_answer"] == 1.0
    summary = Summary.of([row["scores"] for row in results])
    assert summary.giou == pytest.approx(np.mean(ious)) and summary.format_rate == 0.5
    assert summary.mean_reward == pytest.approx(6 / 2)

    item = rows[0]
    mask = predicted_mask(item, oracle_text(item), recipe)
    truth, _ = GroundTruth.model_validate_json(item["reward_model"]["ground_truth"]).union_and_ignore()
    intersection, union = intersection_union(mask, truth)
    assert intersection / union == pytest.approx(ious[0])
    assert not predicted_mask(item, "nothing", recipe).any()


def test_padding_does_not_change_an_answer(recipe: DictConfig, random_policy: Path, drawn: Path) -> None:
    rows = rows_of(recipe, drawn / "test.parquet")
    policy = LocalPolicy(Files(random_policy), max_new_tokens=8)
    items = [rows[index] for index in range(len(rows))]
    assert policy.generate(items) == [policy.generate([item])[0] for item in items]
