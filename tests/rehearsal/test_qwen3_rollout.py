"""The rollout `transformers` samples a Qwen3-VL (deepstack, interleaved M-RoPE) by the policy's own log-probs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from samr1_verl.cpu.generation import Generator, Request, SamplingParams
from samr1_verl.rehearsal.architecture import full_config, small_config
from samr1_verl.rehearsal.processor import small_processor

CHAT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    full = full_config("Qwen/Qwen3-VL-8B-Instruct")
    processor = small_processor(full, [CHAT.format("Find the red circle left of the blue square.")] * 4)
    model = AutoModelForImageTextToText.from_config(small_config(full, processor.tokenizer))
    return Generator(model, processor, set(), processor.tokenizer.pad_token_id)


def request(generator: Generator, seed: int, sentence: str) -> Request:
    size = (256 + 64 * (seed % 2), 256)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ids = generator.processor(text=[CHAT.format(sentence)], images=[image])["input_ids"][0]
    return Request(ids, SamplingParams(max_tokens=10), [image])


@torch.no_grad()
def whole_pass(generator: Generator, asked: Request, token_ids: list[int]) -> torch.Tensor:
    """The log-probs [T] of new tokens from one forward pass over prompt and answer, without padding or cache."""
    model = generator.model
    model.model.rope_deltas = None
    ids = torch.tensor([[*asked.prompt_ids, *token_ids]])
    vision = generator.processor.image_processor(images=list(asked.images), return_tensors="pt")
    kinds = (ids == model.config.image_token_id).long()
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **vision).logits
    log_probs = logits[0, len(asked.prompt_ids) - 1 : -1].log_softmax(-1)
    return log_probs.gather(1, torch.tensor(token_ids)[:, None])[:, 0]


def test_log_probs_of_a_padded_batch_with_a_shared_prompt_are_the_policys(generator: Generator) -> None:
    first, second = request(generator, 0, "Find it."), request(generator, 1, "Find the red circle left of the square.")
    batch = [first, second, first, second, first]
    answers = generator.generate(batch)
    assert len({tuple(answer.token_ids) for answer in answers}) == len(batch)
    for asked, answer in zip(batch, answers, strict=True):
        expected = whole_pass(generator, asked, answer.token_ids)
        assert torch.tensor(answer.log_probs) == pytest.approx(expected.numpy(), abs=1e-4)


def test_the_image_matters(generator: Generator) -> None:
    """Otherwise the comparison above would say nothing about deepstack and positions."""
    first, other = request(generator, 0, "Find it."), request(generator, 2, "Find it.")
    tokens = [100, 101, 102]
    assert not torch.allclose(whole_pass(generator, first, tokens), whole_pass(generator, other, tokens), atol=1e-3)
