"""OpenAI-compatible servers for verifiers: one with given answers, one with a policy."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from PIL import Image

Answerer = Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def serving(answerer: Answerer) -> Iterator[str]:
    """The URL of a server that answers each request with the message that `answerer` makes of its body."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def chat(body: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", **answerer(body)}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": choices,
            "usage": usage,
        }

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join()


def given(answers: Sequence[str]) -> Answerer:
    """Given answers. A request asks for one by its number, which is its `model`."""
    return lambda body: {"content": answers[int(body["model"])]}


def policy(folder: Path, max_new_tokens: int = 48) -> Answerer:
    """A policy that samples, one request at a time."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor, turn = AutoProcessor.from_pretrained(folder), threading.Lock()
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    torch.manual_seed(0)

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        (shown, asked) = body["messages"][0]["content"]
        encoded = shown["image_url"]["url"].removeprefix("data:image/png;base64,")
        image = Image.open(BytesIO(base64.b64decode(encoded)))
        chat = [{"role": "user", "content": [{"type": "image"}, asked]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        with turn, torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=True, temperature=1.0)
        generated = tokens[0, inputs["input_ids"].shape[1] :]
        return {"content": processor.decode(generated, skip_special_tokens=True)}

    return answer
