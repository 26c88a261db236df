"""ms-swift's GRPO: the scores of plain calls, exported rows, two training steps, and a fault of the segmenter."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import swift
from qwen_vl_utils import fetch_image
from safetensors.numpy import load_file
from swift.dataset import load_dataset
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import score_completions

from reward_fns.swift import swift_rewards
from samr1_verl.prompts.export import swift_row
from samr1_verl.segmenters import SegmenterError
from tests.errors import refused
from tests.trainers.corpus import Batch, arguments, batches, compute_score
from tests.trainers.corpus import segmenter as boxes
from tests.trainers.table import check_scores

ROOT = Path(__file__).resolve().parents[3]
STEPS, GROUP = 2, 4
ITEM: dict[str, Any] = {
    "raw_prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}],
    "data_source": "test",
    "reward_model": {"ground_truth": ""},
    "extra_info": {"image": "a.png"},
}


def functions(call: Any, metrics: Sequence[str] = (), **kwargs: Any) -> list[Any]:
    """Reward functions as the trainer makes them from `--reward_funcs`."""
    return [made(args=None) for made in swift_rewards(call, metrics, **kwargs).values()]


def through_swift(asked: list[Any], item: dict[str, Any], answers: Sequence[str]) -> np.ndarray:
    """Values [answers, functions], float32, by the function with which ms-swift's GRPO trainers call rewards."""
    row = swift_row(item, item["extra_info"]["image"])
    samples = [
        GRPOSample.from_row(row | {"messages": [*row["messages"], {"role": "assistant", "content": text}]})
        for text in answers
    ]
    found: np.ndarray = score_completions(samples, asked, None, use_gym_env=False, device="cpu").numpy()
    return found


def test_scores_are_those_of_a_plain_call(corpus: Path) -> None:
    asked: dict[Any, list[Any]] = {}

    def scores(call: Any, kwargs: dict[str, Any], batch: Batch) -> list[float]:
        if call not in asked:
            asked[call] = functions(call, ["acc"], **kwargs)
        found = through_swift(asked[call], batch.item, batch.answers)
        assert found[:, 1].tolist() == [float(np.float32(score["acc"])) for score in batch.scores]
        return found[:, 0].tolist()

    check_scores(corpus, "swift", swift.__version__, scores, as_stored=lambda score: float(np.float32(score)))


def test_an_answer_is_scored_once_for_all_its_functions() -> None:
    scored = []

    async def call(_source: str, text: str, _truth: str, _extra: dict[str, Any]) -> dict[str, float]:
        scored.append(text)
        return {"score": 1.0, "acc": 0.5}

    asked = functions(call, ["acc"])
    for _ in range(STEPS):
        assert through_swift(asked, ITEM, ["a", "b"]).tolist() == [[1.0, 0.5], [1.0, 0.5]]
    assert scored == ["a", "b"] * STEPS


def test_a_fault_of_the_segmenter_is_an_error(corpus: Path) -> None:
    engine = boxes()
    engine._segmenter.fault = RuntimeError("out of memory")
    batch = next(batches(corpus, "samr1"))
    with refused(SegmenterError, "encode_failed", "out of memory"):
        through_swift(functions(compute_score("samr1"), **arguments("samr1", engine)), batch.item, batch.answers)
    engine.close()


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_score_that_is_no_number_is_an_error(value: Any) -> None:
    async def call(*_: Any) -> dict[str, Any]:
        return {"score": value}

    with pytest.raises(ValueError, match=f"score is {value}"):
        through_swift(functions(call), ITEM, ["a"])


@pytest.fixture
def rows(exported: Callable[[str], Path]) -> Path:
    return exported("swift")


def test_exported_rows_are_read_back(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    found, _ = load_dataset([str(rows)], split_dataset_ratio=0, strict=True, remove_unused_columns=False)
    expected = [json.loads(line) for line in rows.read_text().splitlines()]
    for row in expected:
        row["images"] = [{"bytes": None, "path": path} for path in row["images"]]
    assert [{key: row[key] for key in expected[0]} for row in found] == expected
    assert fetch_image({"image": found[0]["images"][0]["path"]}).size == (140, 140), "as the template opens images"


def train(rows: Path, policy: Path, sam: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Two steps of examples/swift_grpo.sh with the tiny policy on the CPU."""
    settings = {
        "--model": policy,
        "--model_type": "qwen2_5_vl",
        "--template": "tiny",
        "--torch_dtype": "float32",
        "--fp16": "false",
        "--bf16": "false",
        "--use_cpu": "true",
        "--max_steps": STEPS,
        "--per_device_train_batch_size": 2 * GROUP,
        "--gradient_accumulation_steps": 1,
        "--num_generations": GROUP,
        "--max_completion_length": 48,
        "--learning_rate": 1e-4,
        "--logging_steps": 1,
        "--save_steps": STEPS,
        "--save_only_model": "true",
        "--report_to": "none",
        "--add_version": "false",
        "--dataloader_num_workers": 0,
        "--output_dir": out,
    }
    plugins = ["--external_plugins", ROOT / "examples" / "swift_plugin.py", Path(__file__).with_name("tiny_plugin.py")]
    command = ["bash", ROOT / "examples" / "swift_grpo.sh", *itertools.chain(*settings.items()), *plugins, *options]
    return subprocess.run(
        [str(part) for part in command],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ROWS": str(rows),
            "SAM": str(sam),
            "SAM_BACKEND": "onnx",
            "MODELSCOPE_CACHE": str(out / "cache"),
            "HF_HUB_OFFLINE": "1",
        },
        cwd=out.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_two_steps_with_exported_rows_and_the_small_sam(
    rows: Path, warm_policy: Path, small_sam: Path, tmp_path: Path
) -> None:
    done = train(rows, warm_policy, small_sam, tmp_path / "run")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    lines = map(json.loads, (tmp_path / "run" / "logging.jsonl").read_text().splitlines())
    logged = [line for line in lines if "reward" in line]
    assert [line["global_step/max_steps"] for line in logged] == ["1/2", "2/2"]
    assert all(line["reward"] == line["rewards/samr1/mean"] for line in logged), "the metric has no weight"
    assert all(2 <= line["reward"] <= 6 for line in logged), "the policy earns both format terms"
    assert all(0 < line["rewards/samr1_acc/mean"] <= 1 for line in logged)
    before, after = (load_file(folder / "model.safetensors") for folder in (warm_policy, tmp_path / "run/checkpoint-2"))
    assert before.keys() == after.keys() and any((before[name] != after[name]).any() for name in before)


def test_a_fault_of_the_segmenter_ends_the_training(
    rows: Path, warm_policy: Path, small_sam: Path, tmp_path: Path
) -> None:
    reward = ["--reward_funcs", "broken", "--reward_weights", "1"]
    done = train(rows, warm_policy, small_sam, tmp_path / "run", *reward)
    assert done.returncode != 0 and "SegmenterError: the segmenter: out of memory" in done.stderr, (
        done.stdout + done.stderr
    )
    assert not list((tmp_path / "run").glob("checkpoint-*")) and '"reward"' not in done.stdout
