"""Questions to a policy and its answers to the segmenter, both busy at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from samr1_verl.geometry.images import ImageError, open_image
from samr1_verl.policies.base import Policy

Result = TypeVar("Result")
AHEAD = 1  # blocks whose masks are made while the policy answers the next ones


async def answer_all(
    policy: Policy,
    blocks: Iterable[Sequence[Mapping[str, Any]]],
    judge: Callable[[Mapping[str, Any], str], Awaitable[Result]],
    keep: Callable[[list[Result]], None],
    seed: int = 0,
) -> None:
    """Ask the policy about every block of items, judge each answer, and hand over whole blocks as they are done.

    Blocks may be done in another order than they were asked in. `seed` and a block's first row make the seed of its
    answers, so that they do not depend on what was asked before.

    Raises:
        ImageError: an image is missing or unreadable; it names the row. And whatever policy and judge raise.
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
    """The error of a batch with the row whose image it is."""
    for item in items:
        try:
            open_image(item["extra_info"]["image"])
        except ImageError as own:
            return ImageError(f"row {item['extra_info']['index']}: {own}")
    return error
