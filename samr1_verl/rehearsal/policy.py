"""The stand-in for the recipe's policy: small, randomly initialised, taught to write answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from transformers import AutoModelForImageTextToText

from samr1_verl.config import answer_tokens, prompt_config
from samr1_verl.prompts.answer_form import like
from samr1_verl.prompts.policy_image import PolicySize
from samr1_verl.prompts.questions import messages_of
from samr1_verl.prompts.templates import load_prompt
from samr1_verl.rehearsal.architecture import full_config, small_config
from samr1_verl.rehearsal.lessons import Form, Taught, Teacher, form_of
from samr1_verl.rehearsal.processor import own_processor, small_processor
from samr1_verl.rows.record import iter_rows
from samr1_verl.scoring.refinement import spoken

PROMPTS = 64  # rows whose prompts the tokenizer and the lessons are made from
STEPS = 260
LARGEST_VOCABULARY_ON_CPU = 16384  # logits of one row of 2,600 tokens and 151,936 words take 1.6 GB in fp32


@dataclass(frozen=True)
class StandIn:
    """A saved stand-in. `own_tokenizer`: whether it has the model's own processor."""

    folder: Path
    parameters: int
    own_tokenizer: bool
    prompt_tokens: int
    taught: Taught


def save_policy(config: DictConfig, rows: Sequence[Path], folder: Path, device: str, seed: int) -> StandIn:
    """Make the stand-in for `actor_rollout_ref.model.path` of a composed recipe.

    Args:
        rows: the training files of the rehearsal.
        folder: takes the stand-in's files.
        device: cpu, or the device type of the training.

    Raises:
        ConfigError: the architecture is unknown, or its processor would resize the recipe's images.
    """
    prompt, model = prompt_config(config.data), str(config.actor_rollout_ref.model.path)
    full = full_config(model)
    own = own_processor(model, LARGEST_VOCABULARY_ON_CPU if device == "cpu" else None)
    chats = list(islice(_chats(config, rows), PROMPTS))
    draft = Form(like(prompt.prompt), prompt.policy_size or (1000, 1000), words=1000)
    rng = np.random.default_rng(seed)
    texts = [
        part["text"] for chat in chats for message in chat.messages for part in message["content"] if "text" in part
    ]
    processor = own or small_processor(full, [*texts, *(draft.answer(rng) for _ in range(500))])
    options = dict(config.data.get("mm_processor_kwargs") or {})
    size = PolicySize(processor, prompt.policy_size, options)
    largest_wh = max((size(chat.original_wh) for chat in chats), key=size.tokens)

    def count(text: str) -> int:
        return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    form = form_of(like(prompt.prompt), prompt.frame, largest_wh, count, answer_tokens(config))

    torch.manual_seed(seed)
    parallel = int(config.actor_rollout_ref.rollout.tensor_model_parallel_size)
    policy = AutoModelForImageTextToText.from_config(small_config(full, processor.tokenizer, parallel)).to(device)
    tokenizer = processor.tokenizer
    prompts, looks = zip(*(chat.texts(processor) for chat in chats), strict=True)
    taught = Teacher(policy, processor, prompts, form, seed, list(filter(None, looks))).teach(STEPS, largest_wh)
    policy.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    policy.to("cpu").save_pretrained(folder)
    processor.save_pretrained(folder)
    tokens = max(count(text) for text in prompts) - 1 + size.tokens(largest_wh)
    return StandIn(folder, policy.num_parameters(), own is not None, tokens, taught)


@dataclass(frozen=True)
class _Chat:
    """The question about a row, with `samr1.refine` a look at a mask as well, and the image's original (W, H)."""

    messages: list[dict[str, Any]]
    original_wh: tuple[int, int]

    def texts(self, processor: Any) -> tuple[str, str]:
        """The text before the first answer, and the text between it and the second one; "": there is none."""

        def text(messages: list[dict[str, Any]]) -> str:
            rendered: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return rendered

        question, look = self.messages[:1], self.messages[1:]
        if not look:
            return text(question), ""
        answer = "ANSWER" + processor.tokenizer.eos_token
        return text(question), text([*question, spoken("ANSWER"), *look]).split(answer)[1]


def _chats(config: DictConfig, files: Sequence[Path]) -> Iterator[_Chat]:
    """The chat of each row."""
    prompt, refine = prompt_config(config.data), config.samr1.get("refine")
    template = load_prompt(prompt.prompt)
    look = None if refine is None else load_prompt(refine.look)
    for file in files:
        for row in iter_rows(file):
            original_wh = (row["width"], row["height"])
            shown_wh = prompt.policy_size or original_wh
            asked = (template,) if look is None else (template, look)
            about = (row["sentence"], row["image"], "", shown_wh, prompt)
            yield _Chat([message for each in asked for message in messages_of(*about, each)], original_wh)
