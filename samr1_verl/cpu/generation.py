"""Batched sampling with transformers' `generate`, from requests to token ids and log-probs, without Ray and verl.

The requests of a batch may differ in prompt, image and sampling parameters. A prompt that several requests share, such
as the prompt of a group, is encoded once, images included. Its keys and values are then copied to the other requests.

Log-probs are defined as in verl's actor: log softmax(logits / temperature) over the whole vocabulary. So rollout and
actor agree on every token. top_p, top_k and the ban of vision tokens restrict the choice of a token but not its
log-prob. A token is drawn from the policy renormalised over the allowed tokens. The log-prob of that distribution and
the returned log-prob differ by the log of the allowed probability, which is 0 for a policy that has learned not to
write vision tokens. A request with a seed has its own random numbers, so that other requests do not change its draws.

Legend: B requests, U unique prompts, L prompt tokens after left padding, T new tokens, V vocabulary.
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
    """A request with parameters or images that this rollout does not support."""


@dataclass(frozen=True)
class SamplingParams:
    """The sampling parameters of a request. Raises RequestError for a value out of range."""

    max_tokens: int  # maximum number of new tokens, at least 1
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # in (0, 1]; 1: no restriction
    top_k: int = -1  # -1 or 0: no restriction
    seed: int | None = None  # of the request's random numbers, 0 to 2^63 - 1; None: torch's global generator

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}, expected at least 1")
        if self.temperature < 0:
            raise RequestError(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}, expected a value in (0, 1]")

    @classmethod
    def from_request(cls, request: Mapping[str, Any], default_max_tokens: int) -> SamplingParams:
        """The parameters from the dictionary of verl's agent loop.

        Raises:
            RequestError: a parameter is out of range, or would change the sampling and is not supported.
        """
        given = dict(request)
        given.pop("logprobs", None)  # not needed: every answer has its log-probs
        if given.pop("repetition_penalty", 1.0) != 1.0:
            raise RequestError("repetition_penalty is not supported by the rollout `transformers`. Set it to 1.0")
        max_tokens = given.pop("max_tokens", None) or given.pop("max_new_tokens", None) or default_max_tokens
        unknown = sorted(set(given) - {"temperature", "top_p", "top_k", "seed"})
        if unknown:
            raise RequestError(
                f"sampling parameters {unknown} are not supported by the rollout `transformers`, which supports "
                "temperature, top_p, top_k, seed and max_tokens"
            )
        return cls(max_tokens=int(max_tokens), **given)


@dataclass(frozen=True)
class Request:
    """A prompt with its images and sampling parameters."""

    prompt_ids: Sequence[int]  # token ids; each image's placeholder is repeated to the image's number of tokens
    params: SamplingParams
    images: Sequence[Image.Image] = ()
    key: tuple[Any, ...] = field(init=False)  # equal for requests with the same prompt and images

    def __post_init__(self) -> None:
        digests = tuple(
            (image.mode, image.size, hashlib.blake2b(image.tobytes(), digest_size=16).digest()) for image in self.images
        )
        object.__setattr__(self, "key", (tuple(self.prompt_ids), digests))


@dataclass(frozen=True)
class Answer:
    """The new tokens, up to and including the end-of-sequence token, and the log-prob of each token."""

    token_ids: list[int]
    log_probs: list[float]


class Generator:
    """A policy with its processor. Not thread-safe: only one batch or one weight update at a time."""

    def __init__(self, model: PreTrainedModel, processor: Any, eos_token_ids: set[int], pad_token_id: int) -> None:
        self.model = model.eval()
        # Emptied, because `generate` takes unset values from it: an EOS where the run ignores EOS, and penalties and
        # warpers that change the sampling. All parameters come from the request.
        self.model.generation_config = GenerationConfig()
        self.processor = processor
        self.eos_token_ids = sorted(eos_token_ids)
        self.pad_token_id = pad_token_id
        ids = (getattr(model.config, name, None) for name in VISION_TOKENS)
        self.never = torch.tensor(sorted({i for i in ids if i is not None}), dtype=torch.long)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers to all requests, in their order.

        Raises:
            RequestError: the number of an image's tokens differs from the number of placeholders in the prompt.
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
        log_probs_BT = sampler.log_probs()
        return [
            self._cut(tokens[i, prompt_length:].tolist(), log_probs_BT[i].tolist(), p.max_tokens)
            for i, p in enumerate(params)
        ]

    def _config(self, max_new_tokens: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the Sampler draws, and leaves one token
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
                f"the prompts of a batch hold {in_prompts} image tokens, their images make {of_images}: prompts and "
                "images were made with different processors. Use the policy's processor for both"
            )

    def _encode(self, inputs: dict[str, torch.Tensor], row_B: torch.Tensor) -> Any:
        """The cache of keys and values of the prompts without their last token, in the rows of the batch.

        Each of the U prompts is computed once. row_B: the prompt of each request.
        """
        cache = self.model.generate(**inputs, generation_config=self._config(max_new_tokens=1)).past_key_values
        cache.crop(inputs["input_ids"].shape[1] - 1)
        cache.batch_select_indices(row_B)
        multimodal: Any = self.model.base_model
        if getattr(multimodal, "rope_deltas", None) is not None:  # M-RoPE: difference of positions to token counts
            multimodal.rope_deltas = multimodal.rope_deltas[row_B]
        return cache

    def _cut(self, token_ids: list[int], log_probs: list[float], max_tokens: int) -> Answer:
        ends = (i + 1 for i, token in enumerate(token_ids) if token in self.eos_token_ids)
        length = min(next(ends, len(token_ids)), max_tokens)
        return Answer(token_ids[:length], log_probs[:length])


class Sampler(LogitsProcessor):
    """Draws the next token of each request from its logits [B, V], and records the log-probs of the drawn tokens."""

    def __init__(self, params: Sequence[SamplingParams], never: torch.Tensor) -> None:
        temperature = torch.tensor([p.temperature for p in params])
        self.greedy_B1 = (temperature == 0).unsqueeze(1)
        self.temperature_B1 = torch.where(temperature == 0, 1.0, temperature).unsqueeze(1)
        self.top_p_B1 = torch.tensor([p.top_p for p in params]).unsqueeze(1)
        self.top_k_B1 = torch.tensor([p.top_k for p in params]).unsqueeze(1)
        self.never = never
        self.uniform_BT = self._uniform(params)
        self.drawn: list[torch.Tensor] = []

    @staticmethod
    def _uniform(params: Sequence[SamplingParams]) -> torch.Tensor:
        """Random numbers in [0, 1), one per token, from each request's own seed."""
        longest = max(p.max_tokens for p in params)
        rows = []
        for p in params:
            own = None if p.seed is None else torch.Generator().manual_seed(p.seed)
            rows.append(torch.rand(longest, generator=own, dtype=torch.float64))
        return torch.stack(rows)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        log_probs_BV = torch.log_softmax(scores / self.temperature_B1, dim=-1)
        allowed_BV = self.allowed(log_probs_BV)
        token_B1 = torch.where(self.greedy_B1, allowed_BV.argmax(-1, keepdim=True), self._draw(allowed_BV))
        self.drawn.append(log_probs_BV.gather(-1, token_B1))
        return torch.full_like(allowed_BV, -torch.inf).scatter_(-1, token_B1, 0.0)

    def allowed(self, log_probs_BV: torch.Tensor) -> torch.Tensor:
        """The log-probs with minus infinity for tokens that a request may not draw."""
        return self._top_k_top_p(log_probs_BV.index_fill(-1, self.never, -torch.inf))

    def _draw(self, allowed_BV: torch.Tensor) -> torch.Tensor:
        """Tokens [B, 1] by inversion: the first whose cumulated probability exceeds the request's random number."""
        sums = allowed_BV.double().softmax(-1).cumsum(-1)
        uniform_B1 = self.uniform_BT[:, len(self.drawn), None] * sums[:, -1:]  # the last sum is 1 up to rounding
        return torch.searchsorted(sums, uniform_B1, right=True).clamp(max=sums.shape[-1] - 1)

    def log_probs(self) -> torch.Tensor:
        """The log-probs, [B, T], of the drawn tokens. They are undefined after a request's end."""
        return torch.cat(self.drawn, dim=-1)

    def _top_k_top_p(self, log_probs_BV: torch.Tensor) -> torch.Tensor:
        """Restrict each row to its top_k likeliest tokens, and of these to the fewest whose sum reaches top_p."""
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
    """Ends each request at its own `max_tokens`."""

    def __init__(self, params: Sequence[SamplingParams], prompt_length: int) -> None:
        self.length_B = torch.tensor([p.max_tokens for p in params]) + prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.length_B
