"""One corpus for every trainer: 2,000 answers about 50 rows, every reward, and the scores of plain calls.

    python -m tests.trainers.corpus FOLDER    write it, in the environment of our own tests

A check reads it in the environment of its trainer, which may have other versions of numpy and pydantic. There it needs
no verl, no Ray and no torch. The segmenter of the corpus draws boxes.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from reward_fns.terms import TERMS
from samr1_verl.config import PromptConfig
from samr1_verl.geometry.masks import box_of, encode_rle, inscribed_points
from samr1_verl.prompts.questions import Questions
from samr1_verl.rows.record import Record
from samr1_verl.service.engine import Engine
from tests.reward_fns.scoring import objects, seg_zero_answer, think
from tests.reward_fns.test_resistance import CORPUS
from tests.row_files import make_record
from tests.service.fake import BoxSegmenter

ROWS, ANSWERS = 50, 40  # answers per row
SIZE_WH, POLICY_WH = (96, 64), (140, 112)
# Reward: its `samr1.reward`. Dr. Seg ranks an answer among those of earlier batches; a batch is a row's answers.
REWARDS: dict[str, Any] = {
    "samr1": {"terms": {"s_measure": 0.5, "boundary_iou": 0}},
    "seg_zero": None,
    "vision_reasoner": None,
    "star": None,
    "dr_seg": {"window": {"path": None, "step": ANSWERS}},
    "composed": {"terms": dict.fromkeys(TERMS, 0.7)},
}


@dataclass(frozen=True)
class Batch:
    """The answers about one row.

    Args:
        item: as `prompts.questions.Questions.item` makes it.
        answers: the policy's texts.
        scores: results of plain calls, in the order of the answers.
    """

    item: dict[str, Any]
    answers: list[str]
    scores: list[dict[str, float]]


def segmenter() -> Engine:
    """A segmenter of boxes in this process, with memory for every image."""
    return Engine(BoxSegmenter(), 1 << 30)


def arguments(reward: str, engine: Engine) -> dict[str, Any]:
    """The keyword arguments of a reward's compute_score."""
    return {"segmenter": engine, "reward": REWARDS[reward]}


def compute_score(reward: str) -> Any:
    """The reward's function."""
    return import_module(f"reward_fns.{reward}").compute_score


def batches(folder: Path, reward: str) -> Iterator[Batch]:
    """The batches of a reward, in order. Seg-Zero's has the rows with an object, with their first object alone."""
    stored = json.loads((folder / "corpus.json").read_text())
    for number, scores in stored["scores"][reward].items():
        yield Batch(item_for(reward, stored["items"][int(number)]), stored["answers"][int(number)], scores)


def item_for(reward: str, item: dict[str, Any]) -> dict[str, Any]:
    """The item whose truth fits the reward."""
    if reward != "seg_zero":
        return item
    truth = json.loads(item["reward_model"]["ground_truth"])
    truth |= {key: truth[key][:1] for key in ("masks", "boxes", "points")}
    return item | {"reward_model": item["reward_model"] | {"ground_truth": json.dumps(truth)}}


def plain(reward: str, item: dict[str, Any], answers: Sequence[str], engine: Engine) -> list[dict[str, float]]:
    """The results of plain calls, one after the other."""
    call, source, truth = compute_score(reward), item["data_source"], item["reward_model"]["ground_truth"]

    async def score() -> list[dict[str, float]]:
        return [
            await call(source, text, truth, dict(item["extra_info"]), **arguments(reward, engine)) for text in answers
        ]

    return asyncio.run(score())


def write(folder: Path) -> None:
    """Write rows.parquet's images and corpus.json."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, engine = random.Random(0), segmenter()
    items = [_item(draw, folder, number) for number in range(ROWS)]
    answers = [_answers(draw, item) for item in items]
    scores: dict[str, dict[int, Any]] = {reward: {} for reward in REWARDS}
    for reward in REWARDS:
        for number, item in enumerate(items):
            if reward == "seg_zero" and not _boxes(item):
                continue
            scores[reward][number] = plain(reward, item_for(reward, item), answers[number], engine)
    engine.close()
    (folder / "corpus.json").write_text(json.dumps({"items": items, "answers": answers, "scores": scores}))


def _item(draw: random.Random, folder: Path, number: int) -> dict[str, Any]:
    """One, two or three objects; every eighth row has none. Every second row asks in thousandths."""
    masks = []
    for _ in range(0 if number % 8 == 7 else draw.choice((1, 1, 2, 3))):
        left, top = draw.randrange(0, 60), draw.randrange(0, 40)
        mask = np.zeros(SIZE_WH[::-1], dtype=bool)
        mask[top : top + draw.randrange(8, 24), left : left + draw.randrange(8, 36)] = True
        masks.append(mask)
    record: Record = make_record(
        folder,
        f"{number}.png",
        SIZE_WH,
        sentence=f"Rectangle number {number}.",
        masks=[encode_rle(mask) for mask in masks],
        boxes=[box_of(mask) for mask in masks],
        points=[inscribed_points(mask) for mask in masks],
    )
    prompt = PromptConfig(
        prompt="vision_reasoner", policy_size=POLICY_WH, frame="thousand" if number % 2 else "absolute"
    )
    return Questions(prompt, None, {}).item(record, folder.absolute() / record.image, number)


def _boxes(item: dict[str, Any]) -> list[list[float]]:
    boxes: list[list[float]] = json.loads(item["reward_model"]["ground_truth"])["boxes"]
    return boxes


def _answers(draw: random.Random, item: dict[str, Any]) -> list[str]:
    """24 usable answers, near the objects and elsewhere, in both dialects, and 16 degenerate ones."""
    width, height = POLICY_WH if item["extra_info"]["frame"] == "absolute" else (1000, 1000)
    scale = (width / SIZE_WH[0], height / SIZE_WH[1]) * 2
    true = [[edge * factor for edge, factor in zip(box, scale, strict=True)] for box in _boxes(item)]
    answers = [think([])]
    for number in range(ANSWERS - 17):
        boxes = [_moved(draw, box, width * number / 200) for box in true] or [_anywhere(draw, width, height)]
        if number % 5 == 4:
            boxes[0] = _anywhere(draw, width, height)
        answers.append(think(_listed(draw, boxes) if number % 2 else _one(boxes[0]), f"I see {number} shapes. Look."))
    return answers + [text for text, _ in draw.sample(list(CORPUS.values()), 16)]


def _moved(draw: random.Random, box: Sequence[float], most: float) -> list[float]:
    return [round(edge + draw.uniform(-most, most), draw.choice((0, 2))) for edge in box]


def _anywhere(draw: random.Random, width: float, height: float) -> list[float]:
    x, y = draw.uniform(0, width * 0.7), draw.uniform(0, height * 0.7)
    return [x, y, x + draw.uniform(1, width * 0.3), y + draw.uniform(1, height * 0.3)]


def _one(box: list[float]) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return seg_zero_answer(box, [x1 * 0.7 + x2 * 0.3, (y1 + y2) / 2], [x1 * 0.3 + x2 * 0.7, (y1 + y2) / 2])


def _listed(draw: random.Random, boxes: list[list[float]]) -> list[dict[str, Any]]:
    draw.shuffle(boxes)
    return objects(*boxes, label=draw.random() < 0.7)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
