"""A policy behind an OpenAI-compatible server, such as `vllm serve`.

The image is sent as a PNG in a data URL, at the policy's size, so answers are in the policy's frame. vLLM applies the
model's own generation settings (a repetition penalty for Qwen) to all parameters that a request leaves out. For plain
greedy decoding start it with `--generation-config vllm`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from samr1_verl.policies.base import GREEDY, PolicyError, Reply, Sampling
from samr1_verl.prompts.policy_image import shown_image
from samr1_verl.service.http_pool import HttpPool, fetch, read
from samr1_verl.service.retry import ExhaustedError, Patience, TransientError, persist

KEY_VARIABLE = "OPENAI_API_KEY"
CONNECT_S, ANSWER_S = 10.0, 600.0  # maximum seconds to connect, and per answer
PATIENCE = Patience(attempt_s=ANSWER_S, attempts=6, first_pause_s=0.5, longest_pause_s=30.0)
ANSWER_BYTES, TOKEN_BYTES = 1_000_000, 1024  # maximum size of an answer: a constant, and for each of its tokens
_PASSING = (408, 409, 425, 429)  # statuses that are retried, in addition to all from 500 up


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _Message(BaseModel):
    content: str | None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None  # length: cut off at max_tokens


class _Usage(BaseModel):
    completion_tokens: NonNegativeInt | None = None


class _Completion(BaseModel):
    """The parts of a chat completion that are read."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None

    def reply(self) -> Reply:
        choice, tokens = self.choices[0], None if self.usage is None else self.usage.completion_tokens
        return Reply(choice.message.content or "", tokens, ended=choice.finish_reason != "length")


class ServerPolicy:
    """A policy behind a server, with several questions at a time.

    The server is not trusted: an answer is read up to a limit that follows from `max_new_tokens`.

    Args:
        address: address with the API's version, such as http://localhost:8000/v1.
        model: name of the policy on the server; None: the server's only model.
        max_new_tokens: maximum number of tokens per answer.
        sampling: how answers are drawn. Default: greedily.
        parallel: maximum number of concurrent requests.
        processor_kwargs, template_kwargs: keyword arguments of the processor and of the chat template; sent under
            vLLM's names where they are not empty.

    Raises:
        PolicyError: the server does not answer, or it does not serve the model.

    The API key is read from the environment variable OPENAI_API_KEY; unset: no key.
    """

    processor = None

    def __init__(
        self,
        address: str,
        model: str | None,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        parallel: int = 16,
        processor_kwargs: Mapping[str, Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.parallel = parallel
        self._address = address.rstrip("/")
        self._max_new_tokens, self._sampling = max_new_tokens, sampling
        extra = {"mm_processor_kwargs": processor_kwargs, "chat_template_kwargs": template_kwargs}
        self._extra = {name: dict(values) for name, values in extra.items() if values}
        key = os.environ.get(KEY_VARIABLE)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        self._pool = HttpPool(self._headers, timeout, connections=parallel, idle=parallel)
        self.model_name = self._served(model)

    async def answer(self, items: Sequence[Mapping[str, Any]], seed: int = 0) -> list[Reply]:
        """As `Policy.answer`."""
        return list(await asyncio.gather(*(self._ask(item, seed + number) for number, item in enumerate(items))))

    def _served(self, model: str | None) -> str:
        """The model's name, checked against the server's list of models."""
        url = f"{self._address}/models"
        try:
            reply = fetch(url, self._headers, ANSWER_BYTES, CONNECT_S)
        except TransientError as error:
            raise PolicyError(
                "server_unreachable",
                f"server {self._address}",
                f"no list of models ({error}). Start a server, for example: vllm serve MODEL --generation-config "
                "vllm; its address ends with /v1",
            ) from error
        if not reply.is_success:
            raise PolicyError(
                "models_refused",
                f"server {self._address}",
                f"{url} answers with status {reply.status}. The address of an OpenAI-compatible server ends with /v1; "
                f"its key is read from {KEY_VARIABLE}",
            )
        try:
            served = [entry.id for entry in _Models.model_validate_json(reply.content).data]
        except ValidationError as error:
            raise PolicyError(
                "no_model_list",
                f"server {self._address}",
                f"{url} answers {reply.excerpt(100)!r}, which is no list of models. The address of an "
                "OpenAI-compatible server ends with /v1",
            ) from error
        if model is None and len(served) == 1:
            return served[0]
        if model is None or model not in served:
            raise PolicyError(
                "no_such_model",
                f"server {self._address}: --model {model}",
                f"the server has {', '.join(served) or 'no model'}",
            )
        return model

    async def _ask(self, item: Mapping[str, Any], seed: int) -> Reply:
        body = {
            "model": self.model_name,
            "messages": await asyncio.to_thread(_messages, item["raw_prompt"]),
            "max_tokens": self._max_new_tokens,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "seed": seed,
            **({"top_k": self._sampling.top_k} if self._sampling.top_k else {}),  # vLLM's, not OpenAI's
            **self._extra,
        }
        extra = item["extra_info"]
        where = f"row {extra['index']}, image {extra['image']}: the server {self._address}"
        try:
            return await persist(lambda: self._post(body), PATIENCE)
        except ExhaustedError as error:
            raise PolicyError(
                "no_answer", where, f"gave no answer in {error.attempts} attempts: {error.fault}"
            ) from error
        except PolicyError as error:
            raise PolicyError.within(where, error) from error

    async def _post(self, body: dict[str, Any]) -> Reply:
        limit = ANSWER_BYTES + TOKEN_BYTES * self._max_new_tokens
        url = f"{self._address}/chat/completions"
        reply = await read(await self._pool.client(), "POST", url, limit, json=body)
        if reply.status in _PASSING or reply.status >= 500:
            raise TransientError(f"status {reply.status}, {reply.excerpt()}")
        if not reply.is_success:
            raise PolicyError(
                "request_refused", "the request", f"refused with status {reply.status}, {reply.excerpt()}"
            )
        try:
            return _Completion.model_validate_json(reply.content).reply()
        except ValidationError as error:
            raise PolicyError(
                "no_chat_completion", "its answer", f"{reply.excerpt()!r} is no chat completion"
            ) from error


def _messages(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Chat messages in the API's form, with images as data URLs."""
    return [{"role": message["role"], "content": [_part(part) for part in message["content"]]} for message in chat]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return {"type": "text", "text": part["text"]}
    content = io.BytesIO()
    shown_image(part).save(content, "PNG")  # lossless: the server's processor must get the same pixels as in training
    encoded = base64.b64encode(content.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
