"""Answers in the form that a prompt asks for, and the few supervised steps in which a stand-in learns to write them.

A randomly initialised policy writes no usable answer: all rewards of a group would be equal, and a step would have no
gradient. The stand-in learns the form and the length of an answer, not the place of an object. A share of the lessons
is broken on purpose, so that the rewards of a group differ. Where the recipe has `samr1.refine`, half of the lessons
with images go on after a look at a mask: with a second answer, or with `done`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from samr1_verl.geometry.frames import THOUSAND
from samr1_verl.prompts.answer_form import AnswerForm, response
from samr1_verl.scoring.turns import DONE

BROKEN = 0.3  # share of answers without their last bracket
RATE = 3e-3  # learning rate
BATCH = 4
SPEAKER = "<|im_start|>assistant\n"  # the text before an answer, in the chat templates of both families
CONTEXT = len("<|im_end|>\n" + SPEAKER)  # characters of a prompt that the first steps see
DIALOGUES = 0.5  # share of the lessons with images that have two turns
STOPS = 0.4  # share of the second turns that say `done`
IGNORE = -100  # label of a token without loss
SKIP = 0.05  # share of the words that an answer leaves out, so that answers differ in length
# No word appears twice, so each one tells which is next: few steps suffice to learn the text.
THINKING = """
first look at whole picture and note every shape then read description again while keeping its words in mind
next compare candidates by colour size form place some do not match because they lie far away from that side
another object is near but has different outline therefore best guess remains this large bright area whose left
border can be seen clearly right edge also upper lower limits are sharp enough now choose points well inside
where mask will surely grow without crossing into background shadows or neighbours check margin on all corners
measure distance between centre frame take care of thin parts such as legs handles leaves hair ropes wheels
finally write numbers down carefully using pixels counted after resizing ignore small noise grain blur
reflections avoid guessing hidden pieces trust visible evidence only answer should describe one thing precisely
nothing more less keep calm verify twice before finishing scan top bottom middle region follow contour slowly
around curve turn until start returns close loop accept result move forward report coordinates
""".split()  # noqa: SIM905 - a list of 200 strings would be no easier to read


@dataclass(frozen=True)
class Form:
    """How the answers of a prompt look.

    Args:
        prompt: name of a template of ours; for a file of the user's, `like` says which.
        extent_wh: (W, H) of the coordinates' range.
        words: number of words between <think> and </think>.
    """

    prompt: str
    extent_wh: tuple[int, int]
    words: int

    def answer(self, rng: np.random.Generator, broken: float = BROKEN) -> str:
        """A response. Its box contains the middle of the image, and its points lie in the box."""
        thought = self._thought(rng)
        objects = [self._object(rng) for _ in range(int(rng.integers(1, 3)) if self.form.lists else 1)]
        text = self.form.answer(objects)
        if rng.random() < broken:
            text = text[: -2 if self.form.lists else -1]
        return response(thought, text)

    def reply(self, rng: np.random.Generator) -> str:
        """A response after a look at a mask: `done`, or an answer."""
        return response(self._thought(rng), DONE) if rng.random() < STOPS else self.answer(rng)

    @property
    def form(self) -> AnswerForm:
        """The keys of the answers."""
        return AnswerForm(self.prompt)

    def _thought(self, rng: np.random.Generator) -> str:
        kept = rng.random(len(THINKING)) >= SKIP
        return " ".join(word for word, keep in zip(THINKING[: self.words], kept, strict=False) if keep)

    def _object(self, rng: np.random.Generator) -> dict[str, Any]:
        # The ranges differ in their first digit, which tells a small policy which number it is writing.
        width, height = self.extent_wh
        ranges = ((width, 0.12, 0.23), (height, 0.25, 0.35), (width, 0.72, 0.82), (height, 0.85, 0.94))
        box = [int(rng.integers(round(low * side), round(high * side))) for side, low, high in ranges]
        return self.form.entry(box, [self._point(rng), self._point(rng)])

    def _point(self, rng: np.random.Generator) -> list[int]:
        return [int(rng.integers(round(0.4 * side), round(0.6 * side))) for side in self.extent_wh]


def form_of(prompt: str, frame: str, policy_wh: tuple[int, int], count: Callable[[str], int], limit: int) -> Form:
    """The form whose answers have about 300 tokens, and at most two thirds of `limit`.

    Args:
        count: number of tokens of a text.
        limit: data.max_response_length.
    """
    extent_wh = policy_wh if frame == "absolute" else (int(THOUSAND), int(THOUSAND))
    for words in range(len(THINKING), 0, -1):
        form = Form(prompt, extent_wh, words)
        if count(form.answer(np.random.default_rng(0), broken=0)) <= limit * 2 / 3:
            return form
    return Form(prompt, extent_wh, 0)


@dataclass(frozen=True)
class Taught:
    """What the lessons came to: steps, seconds, the last loss per token (nats) and tokens of an answer."""

    steps: int
    seconds: float
    loss: float
    answer_tokens: float


class Teacher:
    """Supervised steps for a stand-in.

    Args:
        model: a Qwen2.5-VL or Qwen3-VL in fp32, on its device.
        processor: its processor.
        prompts: chat texts of the recipe's rows, with one image token each.
        form: of the answers.
        seed: of the lessons.
        looks: for each prompt the chat text between its first answer and the next one, with one image token; empty: the
            policy has one turn.
    """

    def __init__(
        self, model: Any, processor: Any, prompts: Sequence[str], form: Form, seed: int, looks: Sequence[str] = ()
    ) -> None:
        self.model, self.processor, self.prompts, self.form, self.looks = model, processor, prompts, form, looks
        self.rng = np.random.default_rng(seed)

    def teach(self, steps: int, image_wh: tuple[int, int]) -> Taught:
        """Train by AdamW.

        Every second step is on answers after the end of a prompt alone, which is cheap. The others are on whole prompts
        with small images, and every tenth on a whole prompt with an image of `image_wh`, (W, H): an answer must follow
        hundreds of image tokens.
        """
        started = time.monotonic()
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.0, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
        loss = 0.0
        self.model.train()
        for step in range(1, steps + 1):
            if step % 2:
                value = self._answers_loss()
            else:
                value = self._whole_loss(1, image_wh) if step % 10 == 0 else self._whole_loss(2, self._small_wh())
            value.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            loss = value.item()
        self.model.eval()
        return Taught(steps, time.monotonic() - started, loss, self._mean_length())

    def _answers_loss(self) -> torch.Tensor:
        """Cross-entropy of the tokens of BATCH answers, each after the last tokens of a prompt."""
        tokenizer = self.processor.tokenizer
        texts = [self._prompt()[-CONTEXT:] + answer for answer in self._answers(BATCH)]
        start = len(tokenizer(self._prompt()[-CONTEXT:], add_special_tokens=False)["input_ids"])
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE)
        labels[:, :start] = IGNORE
        return self.model(**inputs.to(self.model.device), labels=labels.to(self.model.device)).loss

    def _whole_loss(self, count: int, image_wh: tuple[int, int]) -> torch.Tensor:
        """Cross-entropy of the tokens of `count` answers or dialogues, after whole prompts with images of noise."""
        answers = self._answers(count)
        noise = Image.fromarray(self.rng.integers(0, 256, size=(*image_wh[::-1], 3), dtype=np.uint8))
        if self.looks and self.rng.random() < DIALOGUES:
            texts, images = [self._dialogue(answer) for answer in answers], [noise] * 2 * count
        else:
            texts, images = [self._prompt() + answer for answer in answers], [noise] * count
        inputs = self.processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
        labels = inputs["input_ids"].masked_fill(~self.spoken(inputs["input_ids"]), IGNORE)
        return self.model(**inputs.to(self.model.device), labels=labels.to(self.model.device)).loss

    def _dialogue(self, answer: str) -> str:
        row = int(self.rng.integers(len(self.prompts)))
        reply = self.form.reply(self.rng) + self.processor.tokenizer.eos_token
        return self.prompts[row] + answer + self.looks[row] + reply

    def spoken(self, ids: torch.Tensor) -> torch.Tensor:
        """The tokens of answers, their ends included, of chats [B, T] int64: [B, T] bool."""
        tokenizer = self.processor.tokenizer
        before = tokenizer(SPEAKER, add_special_tokens=False)["input_ids"]
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, tokens in enumerate(ids.tolist()):
            for at in range(len(before), len(tokens)):
                if tokens[at - len(before) : at] == before:
                    mask[row, at : tokens.index(tokenizer.eos_token_id, at) + 1] = True
        return mask

    def _small_wh(self) -> tuple[int, int]:
        """(W, H) of a small image of random size."""
        images = self.processor.image_processor
        cell = images.patch_size * images.merge_size
        width, height = self.rng.integers(2, 11, size=2).tolist()
        return width * cell, height * cell

    def _answers(self, count: int) -> list[str]:
        return [self.form.answer(self.rng) + self.processor.tokenizer.eos_token for _ in range(count)]

    def _prompt(self) -> str:
        return self.prompts[int(self.rng.integers(len(self.prompts)))]

    def _mean_length(self) -> float:
        answers = self._answers(32)
        return float(np.mean([len(ids) for ids in self.processor.tokenizer(answers)["input_ids"]]))
