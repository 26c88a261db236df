"""A policy's server that lies, never ends or sends bombs: refused in bounded memory and time; no answer is made up."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samr1_verl.policies import server as server_module
from samr1_verl.policies.base import PolicyError
from samr1_verl.policies.server import ServerPolicy
from tests.attack.client_world import always
from tests.attack.hostile_server import Behaviour, answer, hostile_server
from tests.attack.test_client import CHUNKED, MEGABYTE, MOST_BYTES, OK, drip, forever
from tests.errors import refused
from tests.memory import memory_below
from tests.service.fake import image_file
from tests.waiting import GUARD_S, LoopClock, until

MODELS = answer({"data": [{"id": "tiny"}]})
SOUND = {"choices": [{"message": {"role": "assistant", "content": "four"}}]}


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(server_module.PATIENCE, attempts=2, attempt_s=GUARD_S, first_pause_s=0.01, longest_pause_s=0.01)
    monkeypatch.setattr(server_module, "PATIENCE", quick)


def item(folder: Path) -> dict[str, Any]:
    image, _ = image_file(folder, 7)
    part = {"type": "image", "image": str(image), "resized_width": 28, "resized_height": 28}
    return {
        "raw_prompt": [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}],
        "extra_info": {"index": 3, "image": str(image)},
    }


def after_models(behaviour: Behaviour) -> Behaviour:
    """A sound list of models, and this behaviour for every question."""

    def answering(line: str, body: bytes) -> Iterator[bytes]:
        yield from [MODELS] if line.startswith("GET") else behaviour(line, body)

    return answering


STREAMS: dict[str, Behaviour] = {
    "a body without end": forever(OK + b"\r\n", then=MEGABYTE),
    "chunks without end": forever(CHUNKED, then=b"f4240\r\n" + MEGABYTE + b"\r\n"),
    "an error's body without end": forever(b"HTTP/1.1 400 No\r\n\r\n", then=MEGABYTE),
    "headers without end": forever(OK, then=b"X-More: " + b"x" * 1000 + b"\r\n"),
    "a body, byte by byte": drip(answer(b" " * 1000)),
    "headers, byte by byte": drip(OK + b"X: " + b"x" * 1000),
    "nothing": forever(then=b"", pause_s=0.05),
    "a gzip bomb": always(answer(gzip.compress(b" " * 50_000_000), "200 OK", "Content-Encoding: gzip")),
    "200,000 brackets": always(answer(b"[" * 200_000)),
    "a redirect to itself": always(answer(b"", "307 Go", "Location: /v1/models")),
}
UNTIL_TIME_ENDS = {"a body, byte by byte", "headers, byte by byte", "nothing"}
OUT_OF_TIME = "no answer in [0-9.]+ s|Timeout"
REFUSED = {  # of the list of models; the server counts as unreachable for the other streams
    "an error's body without end": "models_refused",
    "200,000 brackets": "no_model_list",
    "a redirect to itself": "models_refused",
}
ANSWERS: dict[str, Any] = {
    "no choices": {"choices": []},
    "a number": {"choices": [{"message": {"content": 4}}]},
    "a list": {"choices": [{"message": {"content": [{"type": "text", "text": "four"}]}}]},
    "no content": {"choices": [{"message": {}}]},
    "no message": {"choices": [None]},
    "null": None,
}


@pytest.mark.parametrize("timed", [False, True], ids=["at a limit", "in time"])
async def test_questions_end(timed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, question = LoopClock(monkeypatch), item(tmp_path)
    streams = {name: stream for name, stream in STREAMS.items() if (name in UNTIL_TIME_ENDS) == timed}
    with ExitStack() as stack:
        servers = [stack.enter_context(hostile_server(after_models(behaviour))) for behaviour in streams.values()]
        addresses = [f"{server.address}/v1" for server in servers]
        policies = [await asyncio.to_thread(ServerPolicy, address, None, 16) for address in addresses]
        await asyncio.gather(*(policy._pool.client() for policy in policies))
        with memory_below(3 * MOST_BYTES):  # of all together
            answers = asyncio.gather(*(policy.answer([question]) for policy in policies), return_exceptions=True)
            for asked in (2, 3) if timed else ():  # the models, and one or two attempts
                await until(lambda asked=asked: all(len(server.asked) == asked for server in servers))
                clock.put_forward(GUARD_S)
            found = dict(zip(streams, await asyncio.wait_for(answers, 3 * GUARD_S), strict=True))
    assert {name: type(fault) for name, fault in found.items()} == dict.fromkeys(streams, PolicyError)
    assert {name: str(fault)[:6] for name, fault in found.items()} == dict.fromkeys(streams, "row 3,")
    out_of_time = {name: bool(re.search(OUT_OF_TIME, str(fault))) for name, fault in found.items()}
    assert out_of_time == dict.fromkeys(streams, timed)
    assert all(len(server.asked) > 1 and server.sent < MOST_BYTES * len(server.asked) for server in servers)


@pytest.mark.parametrize("name", STREAMS)
def test_the_list_of_models_ends_at_the_limit_or_in_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = name in UNTIL_TIME_ENDS
    monkeypatch.setattr(server_module, "CONNECT_S", 0.5 if timed else GUARD_S)
    with hostile_server(STREAMS[name]) as server:
        with refused(PolicyError, REFUSED.get(name, "server_unreachable"), f"server {server.address}") as found:
            ServerPolicy(f"{server.address}/v1", None, 16)
        assert bool(re.search(OUT_OF_TIME, str(found.value))) == timed and server.sent < MOST_BYTES


@pytest.mark.parametrize("wrong", ANSWERS.values(), ids=ANSWERS.keys())
async def test_an_answer_of_another_form_is_refused(wrong: Any, tmp_path: Path) -> None:
    with hostile_server(after_models(always(answer(wrong)))) as server:
        policy = await asyncio.to_thread(ServerPolicy, f"{server.address}/v1", None, 16)
        with refused(PolicyError, "no_chat_completion", "row 3, image ", server.address):
            await policy.answer([item(tmp_path)])


async def test_a_sound_answer_is_taken(tmp_path: Path) -> None:
    with hostile_server(after_models(always(answer(SOUND)))) as server:
        policy = await asyncio.to_thread(ServerPolicy, f"{server.address}/v1", None, 16)
        assert await policy.answer([item(tmp_path)]) == ["four"]
