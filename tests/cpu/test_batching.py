"""Waiting requests become batches while another batch is at work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from samr1_verl.cpu.batching import Batcher


class Doubler:
    """Doubles numbers, keeps the batches it was given, and waits at a gate while it works."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.working = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.working.set()
        assert self.gate.wait(10)
        if -1 in numbers:
            raise ArithmeticError("minus one")
        return [2 * n for n in numbers]


async def until(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.005)


async def test_what_arrives_while_a_batch_works_becomes_the_next_batch() -> None:
    work = Doubler()
    work.gate.clear()
    batcher = Batcher(work, max_batch=4, quiet=0.02)
    first = asyncio.gather(*(batcher.submit(n) for n in range(3)))
    await until(work.working)
    second = asyncio.gather(*(batcher.submit(n) for n in range(3, 9)))
    await asyncio.sleep(0.1)
    assert work.batches == [[0, 1, 2]]
    work.gate.set()
    assert await first == [0, 2, 4]
    assert await second == [6, 8, 10, 12, 14, 16]
    assert work.batches == [[0, 1, 2], [3, 4, 5, 6], [7, 8]]


async def test_requests_that_trickle_in_share_a_batch() -> None:
    work = Doubler()
    batcher = Batcher(work, max_batch=100, quiet=0.2)

    async def late(n: int) -> int:
        await asyncio.sleep(0.02 * n)
        return await batcher.submit(n)

    assert await asyncio.gather(*(late(n) for n in range(5))) == [0, 2, 4, 6, 8]
    assert work.batches == [[0, 1, 2, 3, 4]]


async def test_an_exception_reaches_its_batch_and_no_other() -> None:
    batcher = Batcher(Doubler(), max_batch=2, quiet=0.02)
    results = await asyncio.gather(*(batcher.submit(n) for n in (1, -1, 5, 6)), return_exceptions=True)
    assert [type(r) for r in results[:2]] == [ArithmeticError, ArithmeticError]
    assert results[2:] == [10, 12]


async def test_nothing_else_runs_during_a_batch() -> None:
    work = Doubler()
    work.gate.clear()
    batcher = Batcher(work, max_batch=1, quiet=0.0)
    answer = asyncio.ensure_future(batcher.submit(1))
    await until(work.working)
    update = asyncio.ensure_future(batcher.run(lambda: "updated"))
    await asyncio.sleep(0.1)
    assert not update.done()
    work.gate.set()
    assert await answer == 2
    assert await update == "updated"


async def test_one_who_gave_up_does_not_disturb_the_others() -> None:
    work = Doubler()
    work.gate.clear()
    batcher = Batcher(work, max_batch=2, quiet=0.02)
    gone, stays = (asyncio.ensure_future(batcher.submit(n)) for n in (1, 2))
    await until(work.working)
    gone.cancel()
    work.gate.set()
    assert await stays == 4
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_a_pause_waits_for_the_running_batch_and_holds_the_next_until_it_is_over() -> None:
    work = Doubler()
    work.gate.clear()
    batcher = Batcher(work, max_batch=4, quiet=0.02)
    first = asyncio.ensure_future(batcher.submit(1))
    await until(work.working)
    pause = asyncio.ensure_future(batcher.pause())
    second = asyncio.ensure_future(batcher.submit(2))
    await asyncio.sleep(0.1)
    assert not pause.done(), "the batch runs"
    work.gate.set()
    await pause
    assert await first == 2
    await asyncio.sleep(0.1)
    assert not second.done() and work.batches == [[1]]
    assert await batcher.run(lambda: "weights") == "weights", "an update is what the pause is for"
    batcher.resume()
    assert await second == 4
