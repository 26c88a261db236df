"""Policy and segmenter at work at the same time: the policy answers one block while the last block is judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from samr1_verl.geometry.images import ImageError, open_image
from samr1_verl.policies.base import Policy

Result = TypeVar("Result")
AHEAD = 1  # blocks that may be judged while the policy answers the next ones


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
    waiting = iter(blocks)
    slots = asyncio.Semaphore(policy.parallel)

    async def work() -> None:
        for items in waiting:
            async with slots:
                try:
                    responses = await policy.answer(items, seed + items[0]["extra_info"]["index"])
                except ImageError as error:
                    raise _with_row(error, items) from error
            keep(await asyncio.gather(*map(judge, items, responses)))

    workers = [asyncio.create_task(work()) for _ in range(policy.parallel + AHEAD)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _with_row(error: ImageError, items: Sequence[Mapping[str, Any]]) -> ImageError:
    """The error of a block, with the number of the row whose image is faulty."""
    for item in items:
        try:
            open_image(item["extra_info"]["image"])
        except ImageError as own:
            return ImageError(f"row {item['extra_info']['index']}: {own}")
    return error
