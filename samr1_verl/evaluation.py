"""Greedy answers of a policy about the rows of a file, scored by the reward function that trains it.

gIoU is the mean over rows of I/U, cIoU the sum of I over the sum of U. A row whose answer is unusable counts as an
empty prediction; no row is left out. An empty union scores 0, as Seg-Zero's evaluation has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForImageTextToText, AutoProcessor

from reward_fns.rollout import prompts_of, read_answer
from reward_fns.samr1 import constants_from
from samr1_verl.answers import Unusable
from samr1_verl.dataset import SegmentationDataset, load_policy_image
from samr1_verl.ground_truth import read_row
from samr1_verl.service.client import get_client

ScoreFunction = Callable[..., Awaitable[dict[str, float]]]


@dataclass(frozen=True)
class Summary:
    """Figures over all rows of a file, each in [0, 1] but for `mean_reward`."""

    giou: float
    ciou: float
    format_rate: float
    mean_reward: float

    @classmethod
    def of(cls, scores: Sequence[dict[str, float]]) -> Summary:
        """From what the reward function returned for each row: score, acc, intersection, union, format."""
        count = len(scores)
        keys = ("score", "acc", "format", "intersection", "union")
        total = {key: sum(score[key] for score in scores) for key in keys}
        ciou = total["intersection"] / total["union"] if total["union"] else 0.0
        return cls(total["acc"] / count, ciou, total["format"] / count, total["score"] / count)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Policy:
    """A policy folder in the hub's format, answering greedily on the CPU or the first GPU."""

    def __init__(self, folder: str | Path, max_new_tokens: int):
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval().to(device)
        self.max_new_tokens = max_new_tokens

    @torch.inference_mode()
    def answer(self, items: Sequence[dict[str, Any]]) -> list[str]:
        """Responses to items of a SegmentationDataset, without special tokens."""
        chats = [item["raw_prompt"] for item in items]
        shown = [part for chat in chats for message in chat for part in message["content"] if part["type"] == "image"]
        inputs = self.processor(
            text=self.processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False),
            images=[load_policy_image(i["image"], (i["resized_width"], i["resized_height"])) for i in shown],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self.model.device)
        tokens = self.model.generate(
            **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, temperature=None, top_p=None, top_k=None
        )
        return self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def dataset_of(recipe: DictConfig, file: str | Path, processor: Any) -> SegmentationDataset:
    """The rows of a file as the recipe's training would show them."""
    data = OmegaConf.merge(recipe.data, {"shuffle": False, "filter_overlong_prompts": False})
    return SegmentationDataset([str(file)], processor.tokenizer, data, processor)


async def evaluate(
    policy: Policy,
    rows: SegmentationDataset,
    compute_score: ScoreFunction,
    reward_kwargs: dict[str, Any],
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """For each row, in order: its `index`, the `response`, and the reward function's `scores`."""
    results = []
    for start in range(0, len(rows), batch_size):
        items = [rows[index] for index in range(start, min(start + batch_size, len(rows)))]
        responses = policy.answer(items)
        scores = await asyncio.gather(
            *(score(item, text, compute_score, reward_kwargs) for item, text in zip(items, responses, strict=True))
        )
        results += [
            {"index": item["index"], "response": text, "scores": one}
            for item, text, one in zip(items, responses, scores, strict=True)
        ]
    return results


async def score(
    item: dict[str, Any], response: str, compute_score: ScoreFunction, reward_kwargs: dict[str, Any]
) -> dict[str, float]:
    """One response through the reward function, as verl's reward worker calls it."""
    return await compute_score(
        data_source=item["data_source"],
        solution_str=response,
        ground_truth=item["reward_model"]["ground_truth"],
        extra_info=item["extra_info"],
        **reward_kwargs,
    )


async def predicted_mask(item: dict[str, Any], response: str, reward_kwargs: dict[str, Any]) -> np.ndarray:
    """The mask (HxW bool, original frame) that a response asks for; empty where its answer is unusable."""
    truth, view, _ = read_row(item["data_source"], item["reward_model"]["ground_truth"], item["extra_info"])
    constants = constants_from({key: reward_kwargs.get(key) for key in ("thresholds", "max_points")})
    answer = read_answer(response, truth, view, constants.max_points, constants.max_objects)
    if isinstance(answer, Unusable):
        return np.zeros(truth.size, dtype=bool)
    client = get_client(reward_kwargs["segmenter"], reward_kwargs["service"])
    image, sha256 = item["extra_info"]["image"], item["extra_info"]["sha256"]
    predictions = await client.segment(image, sha256, prompts_of(answer, truth, view))
    return np.logical_or.reduce([prediction.mask for prediction in predictions])
