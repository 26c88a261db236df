"""Figures of a tiny policy that looks at its mask: greedy dialogues about validation scenes, with the small SAM."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from data.tiny_world import shapes, tiny_policy
from data.tiny_world.lessons import SCALE, Example, answer_text, draw_pool
from samr1_verl.answers import Answer, Unusable, has_think_format
from samr1_verl.config import PromptConfig, RefineConfig
from samr1_verl.prompts.policy_image import load_policy_image
from samr1_verl.prompts.questions import item_of
from samr1_verl.prompts.templates import load_prompt
from samr1_verl.scoring.refinement import Refinement, spoken
from samr1_verl.scoring.rollout import overlap, read_rollout
from samr1_verl.scoring.turns import answers_of, says_done

REFINE = RefineConfig(max_turns=3, turn_tokens=48, look="tiny")
SIZE = (tiny_policy.FRAME,) * 2
GOOD, POOR = 0.9, 0.7  # IoU of masks whose shares of `done` are compared
BATCH = 25


def segmenter_of(sam: Path, embeddings: Path = Path("data/weights/embeddings")) -> dict[str, Any]:
    """The small SAM in this process, as `samr1.segmenter` of the recipe samr1_tiny; `embeddings` keeps its encodes."""
    service = {"mode": "embedded", "cache_gb": 0.25, "cache_dir": str(embeddings)}
    return {"backend": "onnx", "path": str(sam), "device": "cpu", "dtype": "float32", "service": service}


@dataclass(frozen=True, eq=False)
class Asked:
    """A sentence about a scene: the item for rollout and reward, the scene, and the number of the shape."""

    item: dict[str, Any]
    example: Example
    target: int


def ask(folder: Path, count: int, seed: int, split: str = "val") -> list[Asked]:
    """A sentence about each of the first `count` scenes of a split; `folder` gets the images."""
    prompt = PromptConfig(policy_size=SIZE, frame="absolute", prompt="tiny")
    asked = []
    records = shapes.records(folder, split, count, 1, seed)
    for number, (record, example) in enumerate(zip(records, draw_pool(split, seed, count + 20), strict=False)):
        box = np.array(record.boxes[0]) * SCALE
        target = int(np.abs(example.boxes - box).sum(axis=1).argmin())
        path = str(folder / record.image)
        asked.append(Asked(item_of(record, path, number, SIZE, prompt, load_prompt("tiny")), example, target))
    return asked


class Talk:
    """Greedy dialogues of a policy.

    Args:
        policy: folder in the hub's format. segmenter: as for `service.client.get_client`.
    """

    def __init__(self, policy: Path, segmenter: Any):
        self.processor = Qwen2_5_VLProcessor.from_pretrained(policy)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(policy, dtype=torch.float32)
        self.segmenter = segmenter
        self.refinement = Refinement(REFINE, segmenter)

    async def turns(self, asked: Sequence[Asked], first: Sequence[str] | None = None) -> list[list[str]]:
        """The texts of all turns of each dialogue. `first`: first turns that are put into the policy's mouth."""
        chats = [list(each.item["raw_prompt"]) for each in asked]
        texts: list[list[str]] = [[] for _ in asked]
        open_now = list(range(len(asked)))
        while open_now:
            given, first = first, None
            spoken_now = given or self.speak([chats[n] for n in open_now])
            for number, text in zip(open_now, spoken_now, strict=True):
                texts[number].append(text)
            looks = await asyncio.gather(*(self.refinement.look(asked[n].item, texts[n]) for n in open_now))
            for number, look in zip(open_now, looks, strict=True):
                chats[number] += [spoken(texts[number][-1]), look]
            open_now = [number for number, look in zip(open_now, looks, strict=True) if look is not None]
        return texts

    @torch.inference_mode()
    def speak(self, chats: Sequence[list[dict]]) -> list[str]:
        """The policy's next turn in each chat."""
        texts = []
        for start in range(0, len(chats), BATCH):
            batch = chats[start : start + BATCH]
            parts = [p for chat in batch for m in chat for p in m["content"] if p["type"] == "image"]
            inputs = self.processor(
                text=self.processor.apply_chat_template(batch, add_generation_prompt=True, tokenize=False),
                images=[p["image"] if isinstance(p["image"], Image.Image) else load_policy_image(p["image"], SIZE)
                        for p in parts],
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )  # fmt: skip
            tokens = self.model.generate(**inputs, max_new_tokens=REFINE.turn_tokens, do_sample=False)
            texts += self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts

    async def ious(self, asked: Asked, turns: Sequence[str]) -> list[float]:
        """The IoU of the mask of each answer."""
        item = asked.item
        row = (item["reward_model"]["ground_truth"], item["extra_info"])
        rollouts = [read_rollout(item["data_source"], text, *row) for text in answers_of(turns)]
        pixels = [await overlap(rollout, self.segmenter) for rollout in rollouts]
        return [p.intersection / p.union for p in pixels]


def right_shape(asked: Asked, text: str) -> bool:
    """Whether the answer's box is nearest to the right shape; False: unusable."""
    answer = _answer(asked, text)
    if not isinstance(answer, Answer):
        return False
    box = np.array(answer.objects_policy[0].box)
    centres = (asked.example.boxes[:, :2] + asked.example.boxes[:, 2:]) / 2
    return int(np.abs(centres - (box[:2] + box[2:]) / 2).sum(axis=1).argmin()) == asked.target


async def figures(policy: Path, segmenter: Any, folder: Path, count: int, seed: int) -> dict[str, float]:
    """Figures of a policy on `count` validation scenes; see `table`. Keys name the share or mean."""
    talk, asked = Talk(policy, segmenter), ask(folder, count, seed)
    dialogues = await talk.turns(asked)
    ious = [await talk.ious(each, turns) for each, turns in zip(asked, dialogues, strict=True)]
    result = {f"giou_{n}": _mean([i[min(n, len(i)) - 1] for i in ious]) for n in range(1, REFINE.max_turns + 1)}
    looks = [
        (iou, says_done(text))
        for seen, turns in zip(ious, dialogues, strict=True)
        for iou, text in zip(seen, turns[1:], strict=False)  # after the last answer there is no look
    ]
    formed = [_formed(each, text) for each, turns in zip(asked, dialogues, strict=True) for text in turns]
    result |= {
        "format": _mean(formed),
        "right_1": _mean([right_shape(each, turns[0]) for each, turns in zip(asked, dialogues, strict=True)]),
        "turns": _mean([len(turns) for turns in dialogues]),
        "done_good": _mean([done for iou, done in looks if iou >= GOOD]),
        "done_poor": _mean([done for iou, done in looks if iou < POOR]),
        "looks_good": sum(iou >= GOOD for iou, _ in looks),
        "looks_poor": sum(iou < POOR for iou, _ in looks),
    }
    return result | await _after_wrong(talk, [each for each in asked if len(each.example.boxes) > 1], seed)


async def _after_wrong(talk: Talk, asked: Sequence[Asked], seed: int) -> dict[str, float]:
    """Figures of second turns after a first answer about another shape."""
    rng = np.random.default_rng(seed)
    others = [(each.target + int(rng.integers(1, len(each.example.boxes)))) % len(each.example.boxes) for each in asked]
    first = [answer_text(each.example, other, True, rng) for each, other in zip(asked, others, strict=True)]
    second = [turns[1] for turns in await talk.turns(asked, first)]
    return {
        "wrong_done": _mean([says_done(text) for text in second]),
        "wrong_mended": _mean([right_shape(each, text) for each, text in zip(asked, second, strict=True)]),
    }


def _formed(asked: Asked, text: str) -> bool:
    return has_think_format(text) and (says_done(text) or isinstance(_answer(asked, text), Answer))


def _answer(asked: Asked, text: str) -> Answer | Unusable:
    return read_rollout("", text, asked.item["reward_model"]["ground_truth"], asked.item["extra_info"]).answer


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def table(figures: dict[str, float]) -> str:
    """The figures as a Markdown table."""
    rows = [
        ("gIoU after turn 1, 2, 3", " / ".join(f"{figures[f'giou_{n}']:.3f}" for n in range(1, REFINE.max_turns + 1))),
        ("turns that keep the form", f"{figures['format']:.3f}"),
        ("first answers about the right shape", f"{figures['right_1']:.3f}"),
        ("turns per dialogue", f"{figures['turns']:.2f}"),
        (f"`done` after a mask with an IoU of {GOOD} or more ({figures['looks_good']:.0f} masks)",
         f"{figures['done_good']:.3f}"),
        (f"`done` after a mask with an IoU below {POOR} ({figures['looks_poor']:.0f} masks)",
         f"{figures['done_poor']:.3f}"),
        ("`done` after a given first answer about a wrong shape", f"{figures['wrong_done']:.3f}"),
        ("the right shape in the turn after it", f"{figures['wrong_mended']:.3f}"),
    ]  # fmt: skip
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
