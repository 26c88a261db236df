"""Policy and segmenter at work at the same time: the policy answers one block while the last block is judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from samr1_verl.evaluation.clock import SharedClock
from samr1_verl.geometry.images import ImageError, open_image
from samr1_verl.policies.base import Policy

Result = TypeVar("Result")
AHEAD = 1  # blocks that may be judged while the policy answers the next ones


@dataclass(frozen=True)
class Block:
    """Items that the policy answers together, the seed of their answers, and the number of the answer, from 0."""

    items: Sequence[Mapping[str, Any]]
    seed: int
    number: int = 0


async def answer_all(
    policy: Policy,
    blocks: Iterable[Sequence[Mapping[str, Any]]],
    judge: Callable[[Mapping[str, Any], str], Awaitable[Result]],
    keep: Callable[[list[Result]], None],
    seed: int = 0,
) -> None:
    """Ask the policy about every block of items, judge each answer, and pass each finished block to `keep`.

    Blocks may finish in another order than they started. The seed of a block's answers is `seed` plus the index of its
    first row, so answers do not depend on earlier blocks.

    Args:
        policy: answers at most `policy.parallel` blocks at a time.
        blocks: items as `prompts.questions.Questions.item` makes them, in lists that the policy answers together.
        judge: makes the result of one item and its response.
        keep: receives the results of one block, in the order of its items.
        seed: seed of the evaluation.

    Raises:
        ImageError: an image is missing or unreadable; the message names the row.
        Exception: as raised by `policy`, `judge` and `keep`.
    """

    async def judge_all(block: Block, responses: Sequence[str], _: float) -> list[Result]:
        return await asyncio.gather(*map(judge, block.items, responses))

    seeded = (Block(items, seed + items[0]["extra_info"]["index"]) for items in blocks)
    await answer_blocks(policy, seeded, judge_all, lambda _, results: keep(results))


async def answer_blocks(
    policy: Policy,
    blocks: Iterable[Block],
    judge: Callable[[Block, Sequence[str], float], Awaitable[Result]],
    keep: Callable[[Block, Result], None],
) -> None:
    """As `answer_all`, for blocks with seeds of their own.

    Args:
        judge: makes the result of a block from its responses and the policy's share of the time in which it worked.
        keep: receives a block and its result.
    """
    waiting, clock = iter(blocks), SharedClock()
    slots = asyncio.Semaphore(policy.parallel)

    async def work() -> None:
        for block in waiting:
            async with slots:
                with clock.task() as task:
                    responses = await _ask(policy, block)
            keep(block, await judge(block, responses, task.seconds))

    workers = [asyncio.create_task(work()) for _ in range(policy.parallel + AHEAD)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _ask(policy: Policy, block: Block) -> Sequence[str]:
    try:
        return await policy.answer(block.items, block.seed)
    except ImageError as error:
        raise _with_row(error, block.items) from error


def _with_row(error: ImageError, items: Sequence[Mapping[str, Any]]) -> ImageError:
    """The error of a block, with the number of the row whose image is faulty."""
    for item in items:
        try:
            open_image(item["extra_info"]["image"])
        except ImageError as own:
            return ImageError.within(f"row {item['extra_info']['index']}", own)
    return error
