"""An evaluation whose parts a test decides: a policy that follows a rule, masks that are the answer's boxes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samr1_verl.answers import Caps
from samr1_verl.config import PrepareConfig, PromptConfig, SegmenterConfig, ServiceConfig
from samr1_verl.evaluation.difficulty import kept_of, measure, results_of
from samr1_verl.evaluation.poll import Poll
from samr1_verl.evaluation.run import Evaluation, store_results
from samr1_verl.policies.inference_config import InferenceConfig
from samr1_verl.rows.measured import store_measured
from samr1_verl.scoring.recipe_reward import RecipeReward
from tests.row_files import make_record, write_rows

SIZE_WH = (64, 48)
Rule = Callable[[Mapping[str, Any], int], str]  # item, seed → response


def inference_config(segmenter: str = "boxes,0") -> InferenceConfig:
    """Answers in pixels of the original image; every box is its own mask."""
    boxes = SegmenterConfig(
        backend="tests.service.fake",
        path=segmenter,
        device="cpu",
        dtype="float32",
        service=ServiceConfig(mode="embedded", cache_gb=0.01, cache_dir=None),
    )
    return InferenceConfig(
        prompt=PromptConfig(policy_size=SIZE_WH, frame="absolute", prompt="tiny"),
        segmenter=boxes,
        caps=Caps(points=16, objects=16),
        max_new_tokens=48,
        model="none",
        dtype="float32",
        processor_kwargs={},
        template_kwargs={},
        prepare=PrepareConfig(data="", model="", segmenter=""),
        reward={"path": "pkg://reward_fns.samr1", "name": "compute_score", "reward_kwargs": {"segmenter": boxes}},
    )


def answer(*boxes: Sequence[int]) -> str:
    """A usable response with these boxes."""
    objects = [{"bbox_2d": list(box), "point_2d": [box[0], box[1]]} for box in boxes]
    return f"<think>here</think><answer>{json.dumps(objects)}</answer>"


def noisy(item: Mapping[str, Any], seed: int) -> str:
    """A box that row and seed decide; sometimes none."""
    draw = random.Random(f"{item['extra_info']['index']} {seed}")
    x, y = draw.randint(8, 24), draw.randint(6, 18)
    return "I see nothing." if draw.random() < 0.2 else answer([x, y, x + 16, y + 12])


@dataclass
class RulePolicy:
    """Answers by a rule, after some seconds."""

    rule: Rule
    seconds: float = 0.0
    parallel: int = 1
    processor: Any = None
    asked: int = 0

    async def answer(self, items: Sequence[Mapping[str, Any]], seed: int = 0) -> list[str]:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        return [self.rule(item, seed) for item in items]


@dataclass
class Choice:
    """Stands in for `PolicyChoice`."""

    policy: RulePolicy
    name: str = "rule"

    def identity(self) -> dict[str, Any]:
        return {"model": self.name}

    def load(self) -> RulePolicy:
        return self.policy


def evaluation(file: Path, policy: RulePolicy, segmenter: str = "boxes,0", **more: Any) -> Evaluation:
    return Evaluation(
        file, Choice(policy, more.pop("name", "rule")), inference_config(segmenter), **{"block": 4, **more}
    )


def rows(folder: Path, count: int) -> Path:
    """`count` sentences, two an image."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [make_record(folder, f"{i // 2}.png", SIZE_WH, sentence=f"sentence {i}") for i in range(count)]
    return write_rows(folder / "rows.parquet", *records)


def run_slowly(file: str, folder: str, seconds: float) -> None:
    """In a process of its own: an evaluation whose every batch takes some seconds."""
    evaluation(Path(file), RulePolicy(noisy, seconds), "killed,0", seed=7).run(Path(folder), False, lambda *_: None)


def nothing(done: int, total: int) -> None:
    """No progress bar."""


def measure_slowly(file: str, folder: str, seconds: float) -> None:
    """In a process of its own: the difficulty of rows, with 8 answers each, for a policy that takes some seconds."""
    asked = evaluation(Path(file), RulePolicy(noisy, seconds), "measured,0", seed=7)
    poll = Poll(asked, 8, RecipeReward(asked.config.reward))
    answers = poll.ask(Path(folder), False, nothing)
    found = measure(answers, (0.7,), 4)
    keep = found.within(0.1, 0.4)
    results = results_of(found, [said for row in answers for said in row], poll.fingerprint())
    store_measured(Path(file), Path(folder), found.columns, keep)
    store_results(results | {"kept": kept_of(found, (0.1, 0.4), keep)}, Path(folder))
