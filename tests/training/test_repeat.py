"""Rollouts that repeat: their seeds, and the fixed composition of what a server computes together."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

from samr1_verl.training import repeat
from tests.waiting import GUARD_S


def test_seeds_are_of_what_a_rollout_is() -> None:
    one = repeat.rollout_seed(42, False, 3, 17, 5)
    assert one == repeat.rollout_seed(42, False, 3, 17, 5) and 0 <= one < 2**63
    others = [(43, False, 3, 17, 5), (42, True, 3, 17, 5), (42, False, 4, 17, 5), (42, False, 3, 18, 5)]
    others += [(42, False, 3, 17, session) for session in range(5)]
    assert len({one, *(repeat.rollout_seed(*other) for other in others)}) == 10


class Server:
    """A rollout server that answers a batch with its requests' prompts, and keeps the batches."""

    def __init__(self, broken: bool = False) -> None:
        self.batches: list[list[Any]] = []
        self.generate_batch = SimpleNamespace(remote=self._answer)
        self.broken = broken

    async def _answer(self, requests: list[dict[str, Any]]) -> list[Any]:
        self.batches.append([request["prompt_ids"] for request in requests])
        if self.broken:
            raise RuntimeError("the batch failed")
        return [
            ValueError("too long")
            if request["prompt_ids"] == "bad"
            else SimpleNamespace(extra_fields={"global_steps": 7})
            for request in requests
        ]


class VerlsClient:
    """verl's client with some servers."""

    def __init__(self, *servers: Server) -> None:
        self.servers, self.released, self.asked = servers, 0, []

    async def _acquire_server(self, name: str) -> tuple[str, Server]:
        number = hash(name) % len(self.servers)
        return str(number), self.servers[number]

    def _release_server(self, server_id: str, request_id: str) -> None:
        self.released += 1

    async def generate(self, request_id: str, **request: Any) -> Any:
        self.asked.append((request_id, request))
        return "alone"


async def rollouts(client: repeat.Client, prompts: list[str], ended: int = 0, seed: int = 0) -> list[Any]:
    """Start rollouts that ask after times of their own; the last `ended` of them end before they ask."""
    draw = random.Random(seed)
    gathering = repeat.Gathering(len(prompts) + ended, client.ask_together)

    async def one(number: int, prompt: str | None) -> Any:
        rollout = repeat.Rollout(f"r{number}", number, (number, 0), gathering)
        repeat.current.set(rollout)
        await asyncio.sleep(draw.random() / 50)
        try:
            if prompt is None:
                raise OSError("no image")
            return await client.generate("verl", sampling_params={"temperature": 1.0}, prompt_ids=prompt, priority=0)
        finally:
            rollout.end()

    asked = [*prompts, *[None] * ended]
    tasks = [asyncio.create_task(one(number, prompt)) for number, prompt in enumerate(asked)]
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), GUARD_S)


@pytest.mark.parametrize("seed", range(3))
async def test_who_asks_first_does_not_matter(seed: int) -> None:
    server = Server()
    client = VerlsClient(server)
    answers = await rollouts(repeat.Client(client, 1, 100), list("abcdef"), seed=seed)
    assert server.batches == [list("abcdef")] and client.released == 1
    assert all(
        answer.extra_fields == {"global_steps": 7, "min_global_steps": 7, "max_global_steps": 7} for answer in answers
    )


async def test_a_batch_is_not_larger_than_a_server_takes_and_servers_share() -> None:
    servers = Server(), Server()
    await rollouts(repeat.Client(VerlsClient(*servers), 2, 100), list("abcdef"))
    assert sorted(servers[0].batches + servers[1].batches) == [list("abc"), list("def")]
    assert all(len(server.batches) == 1 for server in servers)
    server = Server()
    await rollouts(repeat.Client(VerlsClient(server), 1, 2), list("abcde"))
    assert sorted(server.batches) == [["a", "b"], ["c", "d"], ["e"]]


async def test_nobody_waits_for_a_rollout_that_ended() -> None:
    server = Server()
    answers = await rollouts(repeat.Client(VerlsClient(server), 1, 100), list("abc"), ended=2)
    assert server.batches == [list("abc")] and [type(answer) for answer in answers[3:]] == [OSError, OSError]


async def test_a_fault_is_its_requests_own() -> None:
    answers = await rollouts(repeat.Client(VerlsClient(Server()), 1, 100), ["a", "bad", "c"])
    assert isinstance(answers[1], ValueError) and answers[0].extra_fields and answers[2].extra_fields


async def test_a_batch_that_fails_fails_for_all() -> None:
    client = VerlsClient(Server(broken=True))
    answers = await rollouts(repeat.Client(client, 1, 100), list("ab"))
    assert [str(answer) for answer in answers] == ["the batch failed"] * 2 and client.released == 1


async def test_without_a_gathering_a_turn_asks_alone_with_the_rollouts_name_and_the_turns_seed() -> None:
    verl = VerlsClient(Server())
    client = repeat.Client(verl, 1, 100)
    repeat.current.set(repeat.Rollout("val-3-17-0", 99, (0, 0), None))
    for _ in range(2):
        assert await client.generate("det-0", sampling_params={"top_p": 1.0}, prompt_ids="a", priority=4) == "alone"
    seeds = [request["sampling_params"].pop("seed") for _, request in verl.asked]
    assert seeds == [99, repeat.turn_seed(99, 1)] and len({repeat.turn_seed(99, turn) for turn in range(9)}) == 9
    assert verl.asked == [("val-3-17-0", {"prompt_ids": "a", "sampling_params": {"top_p": 1.0}})] * 2


@pytest.mark.parametrize("seed", range(3))
async def test_the_turns_of_all_rollouts_are_asked_together(seed: int) -> None:
    """Rollouts of 1 to 3 turns, with times of their own between them; one fails and one is cancelled while it waits."""
    server, draw = Server(), random.Random(seed)
    client = repeat.Client(VerlsClient(server), 1, 100)
    gathering, answered = repeat.Gathering(5, client.ask_together), asyncio.Event()

    async def one(number: int, turns: int, fails: bool = False, waits: bool = False) -> None:
        rollout = repeat.Rollout(f"r{number}", number, (number, 0), gathering)
        repeat.current.set(rollout)
        try:
            for turn in range(turns):
                await asyncio.sleep(draw.random() / 50)
                await client.generate("verl", sampling_params={}, prompt_ids=f"{number}.{turn}")
                if fails:
                    raise OSError("no mask")
                if waits:
                    answered.set()
                    await asyncio.Event().wait()
        finally:
            rollout.end()

    tasks = [asyncio.create_task(one(number, turns)) for number, turns in enumerate([3, 1, 2])]
    tasks.append(asyncio.create_task(one(3, 3, fails=True)))
    cancelled = asyncio.create_task(one(4, 3, waits=True))
    tasks.append(cancelled)
    await asyncio.wait_for(answered.wait(), GUARD_S)
    cancelled.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), GUARD_S)
    assert server.batches == [["0.0", "1.0", "2.0", "3.0", "4.0"], ["0.1", "2.1"], ["0.2"]]
