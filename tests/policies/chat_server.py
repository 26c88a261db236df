"""An OpenAI-compatible server with a real policy behind it, as far as `samr1 eval` asks one, on a port of its own."""

from __future__ import annotations

import base64
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Response

from samr1_verl.geometry.images import open_image
from tests.service.servers import free_port

NAME = "tiny"


class ChatServer:
    """Answers `/v1/models` and `/v1/chat/completions`; keeps what it was asked.

    `policy` has LocalPolicy's `generate`. `faults` are statuses that the next questions get instead of an answer.
    `counts`: it says how many tokens it made.
    """

    def __init__(self, policy: Any) -> None:
        self.policy, self.asked, self.faults = policy, [], []
        self.waiting = self.most = 0
        self.counts = True
        self._lock, self._folder = threading.Lock(), tempfile.TemporaryDirectory()
        self.app = FastAPI()
        self.app.get("/v1/models")(lambda: {"object": "list", "data": [{"id": NAME, "object": "model"}]})
        self.app.post("/v1/chat/completions")(self.complete)

    def complete(self, body: dict[str, Any]) -> Any:
        with self._lock:
            self.asked.append(body)
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            fault = self.faults.pop(0) if self.faults else None
        try:
            time.sleep(0.02)
            if fault is not None:
                return Response(f"fault {fault}", status_code=fault)
            with self._lock:
                text = self.policy.generate([self._item(body["messages"])])[0]
            usage = {"completion_tokens": text.tokens} if self.counts else None
            return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], "usage": usage}
        finally:
            with self._lock:
                self.waiting -= 1

    def _item(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """The messages as a local policy takes them, the images from their data URLs."""
        chat = [{**message, "content": list(map(self._part, message["content"]))} for message in messages]
        return {"raw_prompt": chat}

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "image_url":
            return part
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        path = Path(self._folder.name, f"{sha256(data.encode()).hexdigest()}.png")
        path.write_bytes(base64.b64decode(data))
        width, height = open_image(path).size
        return {"type": "image", "image": str(path), "resized_width": width, "resized_height": height}


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application's address while it is served, from a thread of this process."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()
