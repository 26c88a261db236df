"""verifiers with our rewards: its environment, rollouts, interception and command, with servers of answers.

It has no trainer of its own: prime-rl needs vLLM and GPUs. So a tiny policy is evaluated here, and not trained.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import verifiers.v1 as vf
from prime_runs import metrics
from verifiers.v1.serve.client import EnvClient
from verifiers.v1.serve.server import EnvServer

from examples.samr1_verifiers import REWARD, SEGMENTER
from reward_fns.samr1 import compute_score as samr1
from reward_fns.seg_zero import compute_score as seg_zero
from reward_fns.verifiers import environment
from samr1_verl.config import PromptConfig
from samr1_verl.prompts.export import verifiers_row
from samr1_verl.prompts.policy_image import load_policy_image
from samr1_verl.prompts.questions import Questions
from samr1_verl.service.engine import Engine
from tests.row_files import make_record
from tests.service.fake import BoxSegmenter
from tests.trainers.corpus import Batch
from tests.trainers.table import check_scores
from tests.trainers.verifiers.servers import Answerer, given, policy, serving

ROOT = Path(__file__).resolve().parents[3]
GOOD = '<think>Here.</think><answer>{"bbox": [35, 35, 70, 70], "points_1": [45, 45], "points_2": [60, 60]}</answer>'


@pytest.fixture
def item(tmp_path: Path) -> dict[str, Any]:
    """A question about a rectangle, for the tiny policy."""
    record = make_record(tmp_path, size_wh=(128, 96), points=[[[40.0, 30.0], [50.0, 40.0]]])
    questions = Questions(PromptConfig(policy_size=(140, 140), frame="absolute", prompt="tiny"), None, {})
    return questions.item(record, tmp_path / record.image, 5)


def export(items: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """The rows of the items as a JSONL file, and their images."""
    folder.mkdir(exist_ok=True)
    lines = []
    for item in items:
        image = folder / f"{item['extra_info']['sha256']} 1.png"  # a name that a URL must quote
        load_policy_image(item["extra_info"]["image"], item["extra_info"]["policy_size"]).save(image)
        lines.append(json.dumps(verifiers_row(item, str(image))) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder / "rows.jsonl"


def configured(compute_score: Any, kwargs: Mapping[str, Any], rows: Path, **agent: Any) -> vf.EnvConfig:
    """verifiers' configuration that names a module with our classes, and the rows."""
    module: Any = ModuleType("checked_rows")
    module.Rows, module.OneRequest, module.InProcess = environment(compute_score, **kwargs)
    module.__all__ = ["Rows", "OneRequest", "InProcess"]
    sys.modules["checked_rows"] = module
    return vf.resolve_env_config({"taskset": {"id": "checked_rows", "path": str(rows)}, "agent": agent})


class Rollouts:
    """verifiers' server of environments and its client, through which prime-rl asks for episodes.

    Args:
        url: of the server that answers.
    """

    def __init__(self, config: vf.EnvConfig, url: str) -> None:
        self.endpoint = vf.EvalClientConfig(base_url=url, api_key_var="NONE")
        self.server, self.runner = EnvServer(config, "tcp://127.0.0.1:0"), asyncio.Runner()

    def __enter__(self) -> Rollouts:
        self.runner.run(self._start())
        return self

    def __exit__(self, *_error: object) -> None:
        self.runner.run(self._stop())
        self.runner.close()

    def __call__(self, count: int) -> list[vf.WireEpisode]:
        """`count` concurrent episodes of the first row. The number of an episode is its `model`."""
        return self.runner.run(self._group(count))

    async def _group(self, count: int) -> list[vf.WireEpisode]:
        data = next(iter(self.server.env.taskset)).data.model_dump(mode="json")
        asked = [self.client.run(self.endpoint, str(number), vf.SamplingConfig(), data) for number in range(count)]
        return await asyncio.gather(*asked)

    async def _start(self) -> None:
        self.serving, self.client = asyncio.create_task(self.server.run()), EnvClient(self.server.address)

    async def _stop(self) -> None:
        await self.client.close()
        self.serving.cancel()
        await self.serving


def recorded(episode: vf.WireEpisode) -> dict[str, float]:
    """The reward and the metrics of an episode, with compute_score's keys."""
    (trace,) = episode.traces
    assert episode.ok and trace.ok, trace.errors
    assert trace.reward == trace.rewards["reward"].score
    return {"score": trace.reward, **trace.metrics}


def test_scores_are_those_of_a_plain_call(corpus: Path, tmp_path: Path) -> None:
    answers: list[str] = []
    rows = tmp_path / "rows"

    def scores(call: Any, kwargs: dict[str, Any], batch: Batch) -> list[float]:
        export([batch.item], rows)
        answers[:] = batch.answers
        if batch.item["extra_info"]["index"] == 0:
            asked[0] = stack.enter_context(Rollouts(configured(call, kwargs, rows / "rows.jsonl"), url))
        found = [recorded(episode) for episode in asked[0](len(answers))]
        assert found == batch.scores, "every key, to the bit"
        return [one["score"] for one in found]

    asked: dict[int, Rollouts] = {}
    with serving(given(answers)) as url, ExitStack() as stack:
        check_scores(corpus, "verifiers", version("verifiers"), scores)


def test_a_row_is_read_back_as_the_item(item: dict[str, Any], tmp_path: Path) -> None:
    rows = export([item], tmp_path / "rows")
    (task,) = vf.load_environment(configured(seg_zero, {}, rows)).taskset
    (shown, asked) = task.data.prompt[0].content
    assert asked.text == item["raw_prompt"][0]["content"][1]["text"]
    assert shown.image_url.url == next(rows.parent.glob("*.png")).as_uri()
    assert task.data.data_source == item["data_source"]
    assert task.data.ground_truth == item["reward_model"]["ground_truth"]
    assert task.data.extra_info == item["extra_info"]


def test_a_fault_of_the_segmenter_is_an_error_and_no_reward(item: dict[str, Any], tmp_path: Path) -> None:
    rows, segmenter, broken = export([item], tmp_path / "rows"), BoxSegmenter(), BoxSegmenter()
    broken.fault = RuntimeError("out of memory")
    with serving(given([GOOD])) as url:
        with Rollouts(configured(samr1, {"segmenter": Engine(segmenter, 1 << 20)}, rows), url) as asked:
            (good,) = asked(1)
        with Rollouts(configured(samr1, {"segmenter": Engine(broken, 1 << 20)}, rows), url) as asked:
            (bad,) = asked(1)
    (trace,) = bad.traces
    assert not bad.ok and not trace.ok and trace.last_error.type == "TaskError"
    assert "SegmenterError" in trace.last_error.message and "out of memory" in trace.last_error.message
    assert trace.rewards == {"reward": None} and trace.metrics == {}
    assert trace.to_record()["rewards"] == {"reward": None}
    assert recorded(good)["score"] > 4
    summary = metrics.from_episodes([good, bad])
    assert summary["avg_error"] == 0.5 and summary["avg_metrics"]["reward"] == good.traces[0].reward


NO_ANSWER: dict[str, tuple[Answerer, dict[str, Any], str]] = {
    "a server with a reasoning parser": (
        lambda body: {"content": "<answer>[]</answer>", "reasoning_content": "It is here."},
        {},
        "the server took the thinking out",
    ),
    "a limit that ends the first turn": (given([GOOD]), {"max_turns": 0}, "no answer to score"),
    "a time limit for rewards": (given([GOOD]), {"timeout": {"scoring": 9.0}}, "timeout.scoring"),
    "a server that fails": (given([]), {}, "500"),
}


@pytest.mark.parametrize("name", NO_ANSWER)
def test_without_an_answer_there_is_no_reward(name: str, item: dict[str, Any], tmp_path: Path) -> None:
    answerer, agent, message = NO_ANSWER[name]
    config = configured(seg_zero, {}, export([item], tmp_path / "rows"), **agent)
    with serving(answerer) as url, Rollouts(config, url) as asked:
        (episode,) = asked(1)
    (trace,) = episode.traces
    assert not episode.ok and not trace.ok
    assert message in trace.last_error.message
    assert trace.rewards.get("reward") is None


def test_verifiers_command_evaluates_a_policy(item: dict[str, Any], tmp_path: Path) -> None:
    rows, runs = export([item, item], tmp_path / "rows"), tmp_path / "runs"
    with serving(policy(ROOT / "data" / "checkpoints" / "tiny_policy")) as url:
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("vf-eval")), "samr1_verifiers"),
                *("--env.taskset.path", str(rows), "--model", "tiny", "--num-rollouts", "3"),
                *("--client.base-url", url, "--client.api-key-var", "NONE"),
                *("--output-dir", str(runs), "--run.name", "run", "--no-push", "--no-rich"),
            ],
            cwd=ROOT,  # the example's segmenter is data/weights/small_sam
            env={**os.environ, "PYTHONPATH": str(ROOT / "examples"), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    records = [json.loads(line) for line in (runs / "run" / "traces.jsonl").read_text().splitlines()]
    assert [record["ok"] for record in records] == [True] * 6
    for record in records:
        (trace,) = record["traces"]
        text, reward = trace["nodes"][-1]["message"]["content"], trace["rewards"]["reward"]["score"]
        assert {"score": reward, **trace["metrics"]} == asyncio.run(
            samr1(
                item["data_source"],
                text,
                item["reward_model"]["ground_truth"],
                item["extra_info"],
                segmenter=SEGMENTER,
                reward=REWARD,
            )
        )
        assert reward >= 2, f"the warmed-up policy earns both format terms: {text}"
