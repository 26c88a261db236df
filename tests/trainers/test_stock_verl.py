"""A reward in a run of stock verl, synchronous and asynchronous, as examples/stock_verl.sh starts it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from reward_fns.samr1 import compute_score
from tests.conftest import ROOT
from tests.cpu.test_training import overrides

pytestmark = pytest.mark.ray

STEPS, PROMPTS, GROUP = 2, 2, 2


@pytest.mark.parametrize("mode", ["sync", pytest.param("colocate_async", marks=pytest.mark.thorough)])
def test_stock_verl_trains_with_a_reward_of_ours(mode, tmp_path, exported, warm_policy, small_sam, ray_folder):
    rows = exported("verl")
    # What the CPU of this machine needs, of a configuration that trains with another data set and reward.
    stock = dict(one.split("=", 1) for one in overrides(tmp_path, warm_policy, rows, 1, str(ray_folder)))
    for key in [key for key in stock if "custom_" in key or "segmentation" in key or key.endswith("ignore_eos")]:
        del stock[key]
    segmenter = (
        f"{{backend: onnx, path: {small_sam}, device: cpu, dtype: float32,"
        " service: {mode: embedded, cache_gb: 1.0, cache_dir: null, http: null}}"
    )
    stock |= {
        "++reward.custom_reward_function.reward_kwargs.segmenter": segmenter,
        "+reward.custom_reward_function.reward_kwargs.reward.terms.boundary_iou": 0,
        "data.train_batch_size": PROMPTS,
        "data.max_response_length": 48,
        "actor_rollout_ref.actor.ppo_mini_batch_size": PROMPTS,
        "actor_rollout_ref.actor.optim.lr": 1e-5,
        "actor_rollout_ref.rollout.n": GROUP,
        "trainer.total_training_steps": STEPS,
        "trainer.v1.trainer_mode": mode,
        "trainer.test_freq": STEPS,
        "trainer.rollout_data_dir": tmp_path / "rollouts",
    }
    done = subprocess.run(
        ["bash", ROOT / "examples" / "stock_verl.sh", rows, *(f"{key}={value}" for key, value in stock.items())],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VERL_FILE_LOGGER_PATH": str(tmp_path / "metrics.jsonl"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    steps = [json.loads(line)["data"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [step["training/global_step"] for step in steps] == [1, 2]
    items = [json.loads(line) for line in rows.read_text().splitlines()]
    for number, step in enumerate(steps, 1):
        rollouts = [json.loads(line) for line in (tmp_path / "rollouts" / f"{number}.jsonl").read_text().splitlines()]
        scores = [rollout["score"] for rollout in rollouts]
        assert len(scores) == PROMPTS * GROUP
        assert max(scores) >= 2, "stock verl's rollouts have no seed, but one of four keeps both formats"
        assert scores == pytest.approx(plain_scores(items, rollouts, segmenter), rel=1e-6)
        assert step["critic/score/mean"] == pytest.approx(sum(scores) / len(scores), rel=1e-6)
    assert 0 < steps[-1]["val-core/shapes/acc/mean@1"] <= 1
    assert 0 <= steps[-1]["val-aux/shapes/boundary_iou/mean@1"] <= 1
    assert steps[-1]["val-aux/shapes/s_measure/mean@1"] > 0


def plain_scores(items: list[dict[str, Any]], rollouts: list[dict[str, Any]], segmenter: str) -> list[float]:
    """The scores of the rollouts that verl wrote, by plain calls of the reward."""
    item_of = {item["reward_model"]["ground_truth"]: item for item in items}
    reward = {"segmenter": OmegaConf.create(segmenter), "reward": {"terms": {"s_measure": 0.5, "boundary_iou": 0}}}

    async def every() -> list[dict[str, float]]:
        asked = [(item_of[rollout["gts"]], rollout) for rollout in rollouts]
        return [
            await compute_score(item["data_source"], rollout["output"], rollout["gts"], item["extra_info"], **reward)
            for item, rollout in asked
        ]

    return [found["score"] for found in asyncio.run(every())]
