"""A stream on several processes: in order, bounded, and honest about errors."""

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from samr1_verl.rows.parallel import AHEAD, CHUNK, cores, ordered_map


def square(number: int) -> tuple[int, int]:
    if number == 400:
        raise ValueError("400 is bad")
    return number * number, os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    results = list(ordered_map(square, range(300), workers))
    assert [value for value, _ in results] == [number * number for number in range(300)]
    processes = {process for _, process in results}
    assert processes == {os.getpid()} if workers == 1 else os.getpid() not in processes


@pytest.mark.slow
def test_the_stream_is_read_only_a_little_ahead() -> None:
    taken = 0

    def stream() -> Iterator[int]:
        nonlocal taken
        for number in range(399):
            taken += 1
            yield number

    with closing(ordered_map(square, stream(), 2)) as results:
        for done, _ in enumerate(results, start=1):
            assert taken <= done + CHUNK * (2 * AHEAD + 1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_in_its_place(workers: int) -> None:
    results = ordered_map(square, range(390, 420), workers)
    with pytest.raises(ValueError, match="400 is bad"):
        list(results)


def test_cores_are_those_that_this_process_may_use() -> None:
    assert cores() == len(os.sched_getaffinity(0))
