"""Rollouts that are the same in every run (`actor_rollout_ref.rollout.full_determinism`).

verl starts the rollouts of a step together, and what each of them samples depends on which request reaches the server
first. Here each rollout has its own seed, made of the run's seed, the step, the row and its number in the group. With
the rollout `transformers`, whose arithmetic depends on the requests that it computes together, the rollouts of an agent
loop worker also ask together and in a fixed order. vLLM has a mode for that: verl sets VLLM_BATCH_INVARIANT.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any

TOGETHER = ("transformers",)  # `rollout.name` of servers that have `generate_batch`
Waiting = tuple[dict[str, Any], "asyncio.Future[Any]"]  # a request, and its answer


def rollout_seed(seed: int, validate: bool, step: int, row: int, session: int) -> int:
    """The seed of a rollout, 0 to 2^63 - 1: equal for equal arguments, and unrelated for all others.

    Args:
        seed: of the run, `rollout.seed`.
        validate: whether the rollout belongs to a validation.
        step: global step.
        row: number of the row in its data set.
        session: number of the rollout in its group.
    """
    return _hashed(f"{seed}/{validate}/{step}/{row}/{session}")


def turn_seed(seed: int, turn: int) -> int:
    """The seed of a rollout's turn, from 0: the rollout's own for the first, unrelated ones for the others."""
    return seed if turn == 0 else _hashed(f"{seed}/{turn}")


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Gathering:
    """The rollouts of one call of `generate_sequences`, which ask together, turn by turn.

    A turn is asked when each rollout has asked for it or has ended.

    Args:
        rollouts: their number.
        ask: answers the gathered requests, which are in the order of their places.
    """

    def __init__(self, rollouts: int, ask: Any) -> None:
        self._active, self._ask = rollouts, ask
        self._arrived: list[tuple[tuple[int, int], Waiting]] = []
        self._asking: set[asyncio.Task[None]] = set()

    async def answer(self, place: tuple[int, int], request: dict[str, Any]) -> Any:
        """Join the rollouts that wait, and wait with them. place: prompt in the call, session in the group."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._arrived.append((place, (request, future)))
        self._ask_if_all()
        return await future

    def leave(self) -> None:
        """Note that a rollout has ended."""
        self._active -= 1
        self._ask_if_all()

    def _ask_if_all(self) -> None:
        self._arrived = [entry for entry in self._arrived if not entry[1][1].done()]  # done: its rollout was cancelled
        if self._arrived and len(self._arrived) == self._active:
            waiting = [waiting for _, waiting in sorted(self._arrived, key=lambda arrived: arrived[0])]
            self._arrived = []
            asking = asyncio.create_task(self._ask(waiting))
            self._asking.add(asking)  # an event loop keeps no reference to its tasks
            asking.add_done_callback(self._asking.discard)


@dataclass(eq=False)
class Rollout:
    """One rollout while it runs."""

    name: str
    seed: int
    place: tuple[int, int]
    gathering: Gathering | None
    turns: int = field(default=0, init=False)  # that it has asked for

    def end(self) -> None:
        """Note that the rollout has ended, so that the others do not wait for it."""
        if self.gathering is not None:
            self.gathering.leave()


# Of one call of generate_sequences, for the tasks that it starts: number of each prompt by its uid, and the gathering.
call: ContextVar[tuple[dict[str, int], Gathering | None]] = ContextVar("call")
current: ContextVar[Rollout] = ContextVar("rollout")  # of an agent loop; each runs in a task of its own


class Client:
    """verl's client of the rollout servers, for agent loops whose rollouts repeat.

    Args:
        client: verl's client.
        servers: number of rollout servers.
        batch: maximum number of requests that are computed together.
    """

    def __init__(self, client: Any, servers: int, batch: int) -> None:
        self._client, self._servers, self._batch = client, servers, batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def generate(self, request_id: str, *, sampling_params: dict[str, Any], **request: Any) -> Any:
        """verl's `generate` with the seed of the rollout's turn. A request waits for those of the other rollouts."""
        rollout = current.get()
        request.pop(
            "priority", None
        )  # verl's request ids are made of it, and are equal under its trainers of version 1
        request["sampling_params"] = {**sampling_params, "seed": turn_seed(rollout.seed, rollout.turns)}
        rollout.turns += 1
        if rollout.gathering is None:
            return await self._client.generate(rollout.name, **request)
        return await rollout.gathering.answer(rollout.place, request)

    async def ask_together(self, waiting: Sequence[Waiting]) -> None:
        """Send the requests in batches of equal size, spread over the servers, and set their answers."""
        batches = max(math.ceil(len(waiting) / self._batch), min(self._servers, len(waiting)))
        size = math.ceil(len(waiting) / batches)
        parts = [waiting[start : start + size] for start in range(0, len(waiting), size)]
        await asyncio.gather(*(self._ask(number, part) for number, part in enumerate(parts)))

    async def _ask(self, number: int, part: Sequence[Waiting]) -> None:
        # verl's balancer takes the server by the hash of a name, and its process has our hash seed
        names = (f"batch-{number}-{attempt}" for attempt in count())
        name = next(name for name in names if hash(name) % self._servers == number % self._servers)
        try:
            server_id, server = await self._client._acquire_server(name)
            try:
                outcomes = await server.generate_batch.remote([_arguments(request) for request, _ in part])
            finally:
                self._client._release_server(server_id, request_id=name)
        except Exception as error:
            outcomes = [error] * len(part)
        for (_, future), outcome in zip(part, outcomes, strict=True):
            if future.done():  # the rollout was cancelled
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
                continue
            step = outcome.extra_fields.get("global_steps")
            outcome.extra_fields.update(min_global_steps=step, max_global_steps=step)
            future.set_result(outcome)


def _arguments(request: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a server, which verl's client chooses in the same way."""
    return {name: value for name, value in request.items() if value and name != "mm_processor_output"}
