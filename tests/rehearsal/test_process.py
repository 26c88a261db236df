"""A training's processes end with the rehearsal, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from samr1_verl.rehearsal.process import Memory, role_of, run

# A process with a child in a session of its own, as Ray's are, that writes both process ids and waits.
TRAINING = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(300)
"""
REHEARSAL = """
import os, sys
from pathlib import Path
from samr1_verl.rehearsal.process import Memory, ended_by_signals, run
with ended_by_signals():
    program = Path(sys.argv[1]).read_text()
    run([sys.executable, "-c", program], Path(sys.argv[2]), os.environ, lambda: "x", Memory(), 300)
"""


# A helper that writes its own process id and waits, as in the lessons.
LESSONS = """
import os, sys, time
from pathlib import Path
from samr1_verl.rehearsal.process import ended_by_signals, helper
def learn(log):
    Path(log).write_text(f"{os.getpid()} {os.getpid()}")
    time.sleep(300)
if __name__ == "__main__":
    with ended_by_signals(), helper() as pool:
        pool.submit(learn, sys.argv[1]).result()
"""


def started(log: Path) -> list[psutil.Process]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if log.is_file() and len(words := log.read_text().split()) == 2:
            return [psutil.Process(int(word)) for word in words]
        time.sleep(0.1)
    raise AssertionError("the training did not start")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [pytest.param(signal.SIGINT, marks=pytest.mark.thorough), signal.SIGTERM])
def test_a_signal_ends_the_training_and_all_below_it(sent: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text(TRAINING)
    rehearsal = subprocess.Popen(
        [sys.executable, "-c", REHEARSAL, str(tmp_path / "training.py"), str(tmp_path / "log")], stderr=subprocess.PIPE
    )
    processes = started(tmp_path / "log")
    time.sleep(3)  # a sample of the process tree has been taken
    rehearsal.send_signal(sent)
    _, alive = psutil.wait_procs(processes, timeout=40)
    assert rehearsal.wait(40) != 0 and not alive


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
def test_a_kill_of_the_rehearsal_ends_the_training(tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text(TRAINING)
    rehearsal = subprocess.Popen(
        [sys.executable, "-c", REHEARSAL, str(tmp_path / "training.py"), str(tmp_path / "log")]
    )
    training, child = started(tmp_path / "log")
    try:
        rehearsal.kill()
        rehearsal.wait(20)
        _, alive = psutil.wait_procs([training], timeout=20)
        assert not alive
    finally:
        child.kill()  # Ray's own processes follow their driver; this one does not


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_lessons(sent: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "lessons.py").write_text(LESSONS)
    rehearsal = subprocess.Popen(
        [sys.executable, str(tmp_path / "lessons.py"), str(tmp_path / "log")], stderr=subprocess.DEVNULL
    )
    learner = started(tmp_path / "log")[:1]
    rehearsal.send_signal(sent)
    _, alive = psutil.wait_procs(learner, timeout=20)
    assert rehearsal.wait(20) != 0 and not alive


@pytest.mark.slow
def test_status_output_and_memory_are_kept(tmp_path: Path) -> None:
    memory, log = Memory(), tmp_path / "log"
    program = "import time; x = bytearray(200_000_000); print('done'); time.sleep(3); raise SystemExit(3)"
    status = run([sys.executable, "-c", program], log, os.environ, lambda: "only", memory, 60)
    assert status == 3 and log.read_text() == "done\n"
    assert memory.peak_gb["only"] > 0.2 and memory.seconds["only"] > 1


@pytest.mark.slow
def test_a_training_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    program = "import time; time.sleep(300)"
    assert run([sys.executable, "-c", program], tmp_path / "log", os.environ, lambda: "x", Memory(), 3) < 0


def test_roles_are_told_by_the_names_that_ray_gives_its_processes() -> None:
    assert role_of(["ray::WorkerDict.actor_rollout_compute_log_prob"]) == "training worker"
    assert role_of(["ray::ServeReplica:samr1:segmenter"]) == "segmenter"
    assert role_of(["python", "-m", "other"]) == "Ray and others"
