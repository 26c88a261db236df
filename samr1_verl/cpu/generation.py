"""Batched sampling with transformers' `generate`: requests in, token ids and log-probs out. No Ray, no verl.

The requests of a batch may differ in prompt, image and sampling parameters. A prompt that several of them share, as the
rollouts of a group do, is encoded once, image included, and its keys and values are then copied to the others.

Log-probs follow verl's actor: log softmax(logits / temperature) over the whole vocabulary, so that rollout and actor
agree on every token. What only restricts the choice (top_p, top_k, and the vision tokens, which are never sampled) does
not enter. Sampling draws from the policy renormalised over the allowed tokens; a log-prob is the policy's own. The two
differ by the log of the allowed mass, which is 0 for a policy that has learned not to write vision tokens.

Dimensions: B requests, U unique prompts, L prompt tokens after left padding, T new tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

VISION_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")


class RequestError(ValueError):
    """A request that this rollout cannot answer."""


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 is greedy; top_k -1 or 0 and top_p 1 leave the distribution as it is."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}, expected at least 1")
        if self.temperature < 0:
            raise RequestError(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}, expected a value in (0, 1]")

    @classmethod
    def from_request(cls, request: Mapping[str, Any], default_max_tokens: int) -> SamplingParams:
        """From the dictionary of verl's agent loop.

        Raises:
            RequestError: a parameter out of range, or one that would change the sampling and is not supported.
        """
        given = dict(request)
        given.pop("logprobs", None)  # they cost next to nothing: every answer carries them
        if given.pop("repetition_penalty", 1.0) != 1.0:
            raise RequestError("repetition_penalty is not supported by the rollout `transformers`: leave it at 1.0")
        max_tokens = given.pop("max_tokens", None) or given.pop("max_new_tokens", None) or default_max_tokens
        unknown = sorted(set(given) - {"temperature", "top_p", "top_k"})
        if unknown:
            raise RequestError(
                f"sampling parameters {unknown} are not supported by the rollout `transformers`, which knows "
                "temperature, top_p, top_k and max_tokens"
            )
        return cls(max_tokens=int(max_tokens), **given)


@dataclass(frozen=True)
class Request:
    """A prompt of token ids, in which each image's placeholder is already repeated to the image's token count."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    images: Sequence[Image.Image] = ()
    key: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        digests = tuple(
            (image.mode, image.size, hashlib.blake2b(image.tobytes(), digest_size=16).digest()) for image in self.images
        )
        object.__setattr__(self, "key", (tuple(self.prompt_ids), digests))


@dataclass(frozen=True)
class Answer:
    """New tokens up to and including the end-of-sequence token, and the log-prob of each."""

    token_ids: list[int]
    log_probs: list[float]


class Generator:
    """A policy and its processor. Not thread-safe: one batch or one weight update at a time."""

    def __init__(self, model: PreTrainedModel, processor: Any, eos_token_ids: set[int], pad_token_id: int) -> None:
        self.model = model.eval()
        # `generate` fills what a configuration leaves open from the policy's own: EOS where the run ignores EOS, and
        # penalties and warpers that change what is sampled. Everything that counts is in the request.
        self.model.generation_config = GenerationConfig()
        self.processor = processor
        self.eos_token_ids = sorted(eos_token_ids)
        self.pad_token_id = pad_token_id
        ids = (getattr(model.config, name, None) for name in VISION_TOKENS)
        self.never = torch.tensor(sorted({i for i in ids if i is not None}), dtype=torch.long)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests, in their order.

        Raises:
            RequestError: an image whose token count is not that of its placeholders in the prompt.
        """
        rows_of: dict[tuple[Any, ...], int] = {}
        row_B = torch.tensor([rows_of.setdefault(request.key, len(rows_of)) for request in requests])
        unique = {request.key: request for request in requests}
        inputs = self._inputs([unique[key] for key in rows_of])
        cache = self._encode(inputs, row_B)

        params = [request.params for request in requests]
        sampler = Sampler(params, self.never)
        prompt_length = inputs["input_ids"].shape[1]
        tokens = self.model.generate(
            input_ids=inputs["input_ids"][row_B],
            attention_mask=inputs["attention_mask"][row_B],
            past_key_values=cache,
            generation_config=self._config(max(p.max_tokens for p in params)),
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([MaxTokens(params, prompt_length)]),
        ).sequences
        log_probs_BT = sampler.log_probs(tokens)
        return [
            self._cut(tokens[i, prompt_length:].tolist(), log_probs_BT[i].tolist(), p.max_tokens)
            for i, p in enumerate(params)
        ]

    def _config(self, max_new_tokens: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=True,  # from what the Sampler leaves: for a greedy request a single token
            top_k=0,  # transformers' default is 50
            eos_token_id=self.eos_token_ids or None,
            pad_token_id=self.pad_token_id,
            return_dict_in_generate=True,
        )

    def _inputs(self, prompts: Sequence[Request]) -> dict[str, torch.Tensor]:
        """Left-padded model inputs of U prompts: input_ids and attention_mask [U, L] int64, and the images' tensors."""
        length = max(len(prompt.prompt_ids) for prompt in prompts)
        input_ids = torch.full((len(prompts), length), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, length - len(prompt.prompt_ids) :] = torch.tensor(prompt.prompt_ids)
            attention_mask[row, length - len(prompt.prompt_ids) :] = 1
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        images = [image for prompt in prompts for image in prompt.images]
        if images:
            inputs |= self.processor.image_processor(images=images, return_tensors="pt")
            is_image = (input_ids == self.model.config.image_token_id) & attention_mask.bool()
            inputs["mm_token_type_ids"] = is_image.long()
            self._check_image_tokens(inputs["image_grid_thw"], int(is_image.sum()))
        return inputs

    def _check_image_tokens(self, image_grid_thw: torch.Tensor, in_prompts: int) -> None:
        merge = self.processor.image_processor.merge_size
        of_images = int(image_grid_thw.prod(-1).sum()) // merge**2
        if of_images != in_prompts:
            raise RequestError(
                f"the prompts of a batch hold {in_prompts} image tokens, their images make {of_images}: the images "
                "were resized by other rules than the prompt was written with; use the policy's processor for both"
            )

    def _encode(self, inputs: dict[str, torch.Tensor], row_B: torch.Tensor) -> Any:
        """The prompts' keys and values but for their last token, computed once a prompt, in the rows of the batch."""
        cache = self.model.generate(**inputs, generation_config=self._config(max_new_tokens=1)).past_key_values
        cache.crop(inputs["input_ids"].shape[1] - 1)
        cache.batch_select_indices(row_B)
        multimodal: Any = self.model.base_model
        if getattr(multimodal, "rope_deltas", None) is not None:  # what M-RoPE positions lag behind the token count
            multimodal.rope_deltas = multimodal.rope_deltas[row_B]
        return cache

    def _cut(self, token_ids: list[int], log_probs: list[float], max_tokens: int) -> Answer:
        ends = (i + 1 for i, token in enumerate(token_ids) if token in self.eos_token_ids)
        length = min(next(ends, len(token_ids)), max_tokens)
        return Answer(token_ids[:length], log_probs[:length])


class Sampler(LogitsProcessor):
    """Turns logits [B, V] into what each request may sample, and keeps the log-probs of what was sampled."""

    def __init__(self, params: Sequence[SamplingParams], never: torch.Tensor) -> None:
        temperature = torch.tensor([p.temperature for p in params])
        self.greedy_B1 = (temperature == 0).unsqueeze(1)
        self.temperature_B1 = torch.where(temperature == 0, 1.0, temperature).unsqueeze(1)
        self.top_p_B1 = torch.tensor([p.top_p for p in params]).unsqueeze(1)
        self.top_k_B1 = torch.tensor([p.top_k for p in params]).unsqueeze(1)
        self.never = never
        self.sampled: list[torch.Tensor] = []
        self.last_BV: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._keep(input_ids)
        self.last_BV = torch.log_softmax(scores / self.temperature_B1, dim=-1)
        allowed = self.last_BV.index_fill(-1, self.never, -torch.inf)
        allowed = self._top_k_top_p(allowed)
        if self.greedy_B1.any():
            best = allowed.argmax(-1, keepdim=True)
            only_best = torch.full_like(allowed, -torch.inf).scatter_(-1, best, 0.0)
            allowed = torch.where(self.greedy_B1, only_best, allowed)
        return allowed

    def log_probs(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, T] of the T tokens sampled, given the finished sequences [B, L + T]. Past a request's end: undefined."""
        self._keep(tokens)
        return torch.cat(self.sampled, dim=-1)

    def _keep(self, input_ids: torch.Tensor) -> None:
        if self.last_BV is not None:
            self.sampled.append(self.last_BV.gather(-1, input_ids[:, -1:]))

    def _top_k_top_p(self, log_probs_BV: torch.Tensor) -> torch.Tensor:
        """Keep each row's top_k likeliest tokens, and of these the fewest whose probability reaches top_p."""
        if bool((self.top_p_B1 == 1).all()) and bool((self.top_k_B1 <= 0).all()):
            return log_probs_BV
        ordered, index = log_probs_BV.sort(dim=-1, descending=True)
        rank = torch.arange(ordered.shape[-1]).unsqueeze(0)
        ordered = ordered.masked_fill((rank >= self.top_k_B1) & (self.top_k_B1 > 0), -torch.inf)
        probs = ordered.softmax(-1)
        before = probs.cumsum(-1) - probs
        ordered = ordered.masked_fill((before >= self.top_p_B1) & (self.top_p_B1 < 1), -torch.inf)
        return torch.empty_like(ordered).scatter_(-1, index, ordered)


class MaxTokens(StoppingCriteria):
    """Ends each request at its own max_tokens."""

    def __init__(self, params: Sequence[SamplingParams], prompt_length: int) -> None:
        self.length_B = torch.tensor([p.max_tokens for p in params]) + prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.length_B
