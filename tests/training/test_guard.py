"""A run ends where a worker died or nothing moves any more, and goes on where a worker is only busy."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from samr1_verl.training import guard
from samr1_verl.training.guard import Guard, LostRolloutsError
from tests.errors import refused
from tests.waiting import GUARD_S, wait_until

PER_PROMPT = {"train": 8, "val": 1}


def test_a_batch_that_moves_goes_on_and_one_that_stands_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: clock[0])
    watched = Guard(PER_PROMPT, 0.0, progress_timeout_s=100)
    for clock[0], finished in ((0, 0), (90, 1), (180, 2), (279, 2)):
        watched.poll(finished)
    clock[0] = 281
    with refused(LostRolloutsError, "no_progress", "samr1.progress_timeout_s: found 100,", "101 s"):
        watched.poll(2)
    watched.start()  # the next batch begins anew
    watched.poll(2)


class Worker:
    async def nothing(self) -> None: ...

    def work_until(self, path: Path) -> None:
        wait_until(path.exists)


def test_a_dead_worker_ends_the_run_and_a_busy_one_does_not(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PING_S", 0.0)
    actors = [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(2)]
    ray.get([actor.nothing.remote() for actor in actors])
    watched = Guard(PER_PROMPT, 0.0, progress_timeout_s=2 * GUARD_S)
    watched.add_workers("agent loop worker", actors)
    busy = actors[0].work_until.remote(tmp_path / "end")
    for finished in range(3):  # each waits a second for the busy one
        watched.poll(finished)
    assert "agent loop worker 0" in watched._pings.values()
    ray.kill(actors[1])
    with refused(LostRolloutsError, "worker_died", "agent loop worker 1"):
        wait_until(lambda: watched.poll(9))
    (tmp_path / "end").touch()
    ray.get(busy)


def test_what_is_allowed_to_be_lost_is_a_share_of_the_whole_batch() -> None:
    watched = Guard(PER_PROMPT, 0.02, progress_timeout_s=100)
    assert watched.check("train", 1, prompts=16, rollouts=128) == {"training/lost_rollouts": 0}
    assert watched.check("train", 1, prompts=16, rollouts=126) == {"training/lost_rollouts": 2}
    assert watched.check("val", 1, prompts=100, rollouts=98) == {"validation/lost_rollouts": 2}
    with refused(LostRolloutsError, "rollouts_lost", "training at step 1", "3 of 128", "samr1.max_lost_share is 0.02"):
        watched.check("train", 1, prompts=16, rollouts=125)
