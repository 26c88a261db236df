"""The rollout's sampling: every request by its own parameters, log-probs the policy's own, prompts encoded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, GenerationConfig, Qwen2_5_VLForConditionalGeneration

from samr1_verl.cpu.generation import Generator, Request, RequestError, Sampler, SamplingParams

SEQUENCE = "the red circle left of the blue square"


@pytest.fixture(scope="module")
def generator(random_policy: Path) -> Generator:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_policy)
    processor = AutoProcessor.from_pretrained(random_policy)
    tokenizer = processor.tokenizer
    return Generator(model, processor, {tokenizer.eos_token_id}, tokenizer.pad_token_id)


@pytest.fixture
def favour(generator: Generator):
    """A function that adds a constant to one token's logit until the test ends."""
    hooks = []

    def add(token_id: int, amount: float) -> None:
        def bump(_module, _inputs, logits: torch.Tensor) -> torch.Tensor:
            return logits + amount * torch.nn.functional.one_hot(torch.tensor(token_id), logits.shape[-1])

        hooks.append(generator.model.lm_head.register_forward_hook(bump))

    yield add
    for hook in hooks:
        hook.remove()


def test_nothing_of_the_policys_own_generation_config_enters(random_policy: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_policy)
    processor = AutoProcessor.from_pretrained(random_policy)
    eos = processor.tokenizer.eos_token_id
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits.index_fill(-1, torch.tensor([eos]), 99))
    model.generation_config = GenerationConfig(eos_token_id=eos, repetition_penalty=50.0, suppress_tokens=[eos])
    endless = Generator(model, processor, eos_token_ids=set(), pad_token_id=processor.tokenizer.pad_token_id)
    (answer,) = endless.generate([request(endless, seed=0, words=3, temperature=0.0)])
    assert answer.token_ids == [eos] * 12
    assert answer.log_probs == pytest.approx([0.0] * 12, abs=1e-4)


def image(seed: int, size: tuple[int, int] = (140, 140)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def prompt_ids(generator: Generator, sentence: str, picture: Image.Image | None) -> list[int]:
    content = [{"type": "text", "text": sentence}]
    if picture is not None:
        content.insert(0, {"type": "image"})
    processor = generator.processor
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=[text], images=None if picture is None else [picture])["input_ids"][0]


def request(generator: Generator, seed: int, words: int, **params) -> Request:
    """Images of different shapes and sentences of different lengths, so that a batch is padded."""
    picture = image(seed, size=(140, 140 - 28 * (seed % 3)))
    ids = prompt_ids(generator, " ".join(SEQUENCE.split()[:words]), picture)
    return Request(ids, SamplingParams(**{"max_tokens": 12, **params}), [picture])


def teacher_forced(generator: Generator, asked: Request, token_ids: list[int]) -> torch.Tensor:
    """The policy's logits [T, V] for each new token, from one forward pass over the finished sequence, unpadded."""
    model = generator.model
    model.model.rope_deltas = None
    ids = torch.tensor([[*asked.prompt_ids, *token_ids]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if asked.images:
        inputs |= generator.processor.image_processor(images=list(asked.images), return_tensors="pt")
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    with torch.no_grad():
        return model(**inputs).logits[0, len(asked.prompt_ids) - 1 : -1]


def test_a_mixed_batch_gives_each_request_what_it_asked_for(generator: Generator) -> None:
    params = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 0.0, "max_tokens": 9},
        {"temperature": 1.3, "top_k": 5, "max_tokens": 5},
    ]
    requests = [request(generator, seed, words=2 + 2 * seed, **p) for seed in range(3) for p in params]
    requests.append(Request(prompt_ids(generator, SEQUENCE, None), SamplingParams(max_tokens=7)))
    for asked, answer in zip(requests, generator.generate(requests), strict=True):
        logits = teacher_forced(generator, asked, answer.token_ids)
        temperature = asked.params.temperature or 1.0
        tokens = torch.tensor(answer.token_ids).unsqueeze(-1)
        expected = torch.log_softmax(logits / temperature, -1).gather(-1, tokens).squeeze(-1)
        assert torch.tensor(answer.log_probs) == pytest.approx(expected, abs=1e-4)
        assert 1 <= len(answer.token_ids) <= asked.params.max_tokens
        allowed = logits.index_fill(-1, generator.never, -torch.inf)
        if asked.params.temperature == 0:
            assert answer.token_ids == allowed.argmax(-1).tolist()
        if asked.params.top_k > 0:
            assert (allowed.topk(5).indices == tokens).any(-1).all()


def test_a_prompt_that_a_group_shares_is_encoded_once(generator: Generator) -> None:
    encoded = []
    hook = generator.model.model.visual.register_forward_hook(
        lambda _module, _args, kwargs, _out: encoded.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    group = [request(generator, seed=1, words=3, temperature=0.0) for _ in range(4)]
    other = request(generator, seed=2, words=3, temperature=0.0)
    answers = generator.generate([*group, other])
    hook.remove()
    assert encoded == [2]
    assert all(answer.token_ids == answers[0].token_ids for answer in answers[:4])
    alone = generator.generate([other])[0]
    assert answers[4].token_ids == alone.token_ids


def test_an_answer_ends_with_the_first_end_of_sequence(generator: Generator, favour) -> None:
    eos = generator.eos_token_ids[0]
    favour(eos, 3.5)
    answers = generator.generate([request(generator, seed, words=4, max_tokens=40) for seed in range(6)])
    lengths = {len(answer.token_ids) for answer in answers}
    assert len(lengths) > 1  # rows of a batch end one by one
    for answer in answers:
        assert eos not in answer.token_ids[:-1]
        assert answer.token_ids[-1] == eos or len(answer.token_ids) == 40
        assert len(answer.log_probs) == len(answer.token_ids)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vision_tokens_are_never_sampled_and_log_probs_stay_the_policys(
    generator: Generator, favour, temperature: float
) -> None:
    config = generator.model.config
    vision = {
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    }
    favour(config.image_token_id, 8.0)
    asked = request(generator, seed=0, words=4, temperature=temperature)
    answer = generator.generate([asked])[0]
    assert not vision & set(answer.token_ids)
    policy = torch.log_softmax(teacher_forced(generator, asked, answer.token_ids), -1)
    expected = policy.gather(-1, torch.tensor(answer.token_ids).unsqueeze(-1)).squeeze(-1)
    assert torch.tensor(answer.log_probs) == pytest.approx(expected, abs=1e-4)
    assert policy[:, config.image_token_id].exp().max() > 0.5  # what was forbidden mattered


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 3), (0.6, -1), (0.6, 3), (0.05, -1), (0.99, 0)])
def test_what_may_be_sampled_is_top_k_then_top_p_renormalised(top_p: float, top_k: int) -> None:
    logits = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    sampler = Sampler([SamplingParams(max_tokens=1, temperature=0.8, top_p=top_p, top_k=top_k)] * 5, torch.tensor([7]))
    probabilities = sampler.allowed(torch.log_softmax(logits / 0.8, dim=-1)).softmax(-1)
    for row, p in zip(logits, probabilities, strict=True):
        policy = (row / 0.8).softmax(-1)
        policy[7] = 0
        order = policy.argsort(descending=True).tolist()[: top_k if top_k > 0 else 19]
        mass = sum(policy[i] for i in order)
        kept, reached = [], 0.0
        for i in order:
            if reached < top_p:
                kept.append(i)
                reached += float(policy[i] / mass)
        expected = torch.zeros(20)
        expected[kept] = policy[kept] / policy[kept].sum()
        assert p == pytest.approx(expected, abs=1e-6)


def test_sampling_follows_the_policys_distribution(generator: Generator) -> None:
    asked = request(generator, seed=0, words=4, max_tokens=1, temperature=0.25)
    answers = generator.generate([asked] * 1000)
    policy = (teacher_forced(generator, asked, answers[0].token_ids)[0] / 0.25).softmax(-1)
    policy[generator.never] = 0
    policy /= policy.sum()
    frequency = torch.bincount(torch.tensor([a.token_ids[0] for a in answers]), minlength=len(policy)) / 1000
    deviation = (policy * (1 - policy) / 1000).sqrt()
    assert ((frequency - policy).abs() <= 5 * deviation + 2e-3).all()


def test_a_seeded_answer_does_not_depend_on_the_other_requests(generator: Generator) -> None:
    """Random numbers are a request's own: other requests, their order and torch's global state do not matter."""
    plain = request(generator, seed=0, words=4, max_tokens=20)
    seeded = [replace(plain, params=replace(plain.params, seed=n)) for n in range(4)]
    answers = generator.generate(seeded)
    assert len({tuple(answer.token_ids) for answer in answers}) > 1
    torch.manual_seed(99)
    again = generator.generate([seeded[2], plain, seeded[0]])
    assert again[0].token_ids == answers[2].token_ids and again[2].token_ids == answers[0].token_ids
    repeated = generator.generate(seeded)  # the same batch: to the bit
    assert [answer.log_probs for answer in repeated] == [answer.log_probs for answer in answers]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"max_tokens": -3}, "max_tokens is -3"),
    ],
)
def test_sampling_parameters_it_cannot_honour_are_refused(params: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams.from_request(params, default_max_tokens=5)


def test_verls_own_request_is_understood() -> None:
    request = {"temperature": 0.9, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
    assert SamplingParams.from_request(request, 24) == SamplingParams(max_tokens=24, temperature=0.9)


def test_an_image_of_another_size_than_the_prompts_is_refused(generator: Generator) -> None:
    ids = prompt_ids(generator, SEQUENCE, image(0))
    with pytest.raises(RequestError, match=r"25 image tokens, .* 15"):
        generator.generate([Request(ids, SamplingParams(max_tokens=2), [image(0, size=(140, 84))])])
