"""Faults end a run with their message: verl alone trains on, or waits for ever."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from samr1_verl.rehearsal.process import without_a_cluster
from tests.training_runs import TIMEOUT_S, World

SHORT = ("trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1", "data.train_batch_size=8")
FAULTY = """
calls = 0

def compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs):
    global calls
    calls += 1
    if calls % 50 == 0:
        raise RuntimeError("the fiftieth call")
    return {"score": float(len(solution_str) % 3), "acc": 0.0}
"""


@pytest.mark.thorough
def test_a_reward_that_fails_once_in_fifty_calls_ends_the_run_with_its_message(world: World, warm_policy: Path) -> None:
    reward = world.run.parent / "reward.py"
    reward.write_text(FAULTY)
    output = world.train(
        "samr1_tiny",
        warm_policy,
        *SHORT,
        f"reward.custom_reward_function.path={reward}",
        "samr1.samples=0",
        "trainer.total_training_steps=3",
        status=1,
    )
    assert "1 of 64" in output and "samr1.max_lost_share" in output
    assert "the fiftieth call" in output


@pytest.mark.thorough
def test_an_allowed_loss_trains_on_and_is_logged(world: World, warm_policy: Path) -> None:
    """The lost rollouts are replaced by rows of text alone, of which a micro-batch of one row consists."""
    reward = world.run.parent / "reward.py"
    reward.write_text(FAULTY)
    world.train(
        "samr1_tiny",
        warm_policy,
        *SHORT,
        f"reward.custom_reward_function.path={reward}",
        "samr1.samples=0",
        "samr1.max_lost_share=0.1",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "trainer.total_training_steps=1",
    )
    assert world.logged()["training/lost_rollouts"] == {1: 1}


@pytest.mark.thorough
@pytest.mark.parametrize("worker", ["AgentLoopWorker", "RewardLoopWorker", "TransformersServer"])
def test_a_killed_worker_ends_the_run_with_a_message(worker: str, world: World, warm_policy: Path) -> None:
    command = world.command("samr1_tiny", warm_policy, *SHORT, "trainer.total_training_steps=1000")
    log = world.run.parent / "log.txt"
    with log.open("w") as output:
        run = subprocess.Popen(
            command, cwd=world.run.parent, env=without_a_cluster(), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for("step:1 ", log, run)
        killed = [process for process in psutil.Process(run.pid).children(recursive=True) if is_actor(process, worker)]
        assert killed, f"no process of {worker}"
        for process in killed:
            process.kill()
        assert run.wait(TIMEOUT_S) == 1
        assert "LostRolloutsError" in log.read_text() or "ActorDiedError" in log.read_text(), log.read_text()[-4000:]
    finally:
        run.kill()


def is_actor(process: psutil.Process, name: str) -> bool:
    """Whether a process is the Ray actor of a class: Ray writes the class into the process's title."""
    try:
        return " ".join(process.cmdline()).startswith(f"ray::{name}")
    except psutil.Error:
        return False


def wait_for(text: str, log: Path, run: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while text not in log.read_text():
        assert run.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.5)
