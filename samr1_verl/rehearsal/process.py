"""A training process with all processes below it: started, watched, and ended with this process."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

SAMPLE_S = 2.0
END_S = 20.0  # seconds in which processes may end by themselves
ROLES = {  # names of Ray's processes, which they set as their command line
    "ray::WorkerDict": "training worker",
    "ray::ActorRolloutRefWorker": "training worker",
    "ray::TransformersServer": "rollout server",
    "ray::vLLM": "rollout server",
    "VLLM": "rollout server",
    "ray::AgentLoopWorker": "agent loop",
    "ray::RewardLoopWorker": "reward worker",
    "ray::ServeReplica": "segmenter",
    "ray::TaskRunner": "trainer",
}


def role_of(command: Sequence[str]) -> str:
    """The part of a run that a process with this command line is."""
    line = " ".join(command)
    return next((role for name, role in ROLES.items() if line.startswith(name)), "Ray and others")


class Memory:
    """Peak memory of a process tree in GB (1e9 bytes), in all and by role, in the phase that `phase` names.

    Sets of pages are summed with every shared page divided among its users (Linux' PSS): a plain sum would count the
    libraries and Ray's object store once per process.
    """

    def __init__(self) -> None:
        self.peak_gb: dict[str, float] = {}  # by phase
        self.roles_gb: dict[str, float] = {}  # by role, over all phases
        self.seconds: dict[str, float] = {}  # wall time by phase, to SAMPLE_S seconds
        self._last = time.monotonic()

    def restart(self) -> None:
        """Begin to count time."""
        self._last = time.monotonic()

    def sample(self, phase: str, processes: Sequence[psutil.Process]) -> None:
        """Add the present use of these processes."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
        by_role: dict[str, float] = {}
        for process in processes:
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                used = process.memory_full_info()
                role = role_of(process.cmdline())
                by_role[role] = by_role.get(role, 0.0) + getattr(used, "pss", used.rss) / 1e9
        self.peak_gb[phase] = max(self.peak_gb.get(phase, 0.0), sum(by_role.values()))
        for role, used_gb in by_role.items():
            self.roles_gb[role] = max(self.roles_gb.get(role, 0.0), used_gb)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, which SIGINT is already, so that both end the training."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str],
    phase: Callable[[], str],
    memory: Memory,
    timeout_s: float,
) -> int:
    """Run a command to its end, and return its exit status. No process below it remains, whatever ends this call.

    Args:
        log: takes its output.
        env: its environment.
        phase: name of the present phase, for `memory`.
        timeout_s: seconds after which it is ended; its status is then negative.
    """
    known: dict[int, psutil.Process] = {}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=dict(env),
            start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
        try:
            memory.restart()
            deadline = time.monotonic() + timeout_s
            while process.poll() is None and time.monotonic() < deadline:
                known |= {child.pid: child for child in _tree(process.pid)[1:]}
                memory.sample(phase(), [psutil.Process(), *_tree(process.pid)[:1], *known.values()])
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SAMPLE_S)
        finally:
            if process.poll() is None:
                known |= {child.pid: child for child in _tree(process.pid)[1:]}
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
                process.kill()
            end(list(known.values()))
        return process.wait()


def without_a_cluster() -> dict[str, str]:
    """This process's environment, without the address of a Ray cluster."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def kill(process: subprocess.Popen) -> None:
    """Send SIGKILL to a process and to all below it, and wait until they have ended."""
    tree = _tree(process.pid)
    for one in tree:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            one.kill()
    process.wait()
    psutil.wait_procs(tree, timeout=END_S)


def end(processes: Sequence[psutil.Process]) -> None:
    """Wait for processes to end, then ask them, then kill them."""
    _, alive = psutil.wait_procs(processes, timeout=END_S / 2)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=END_S / 2)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _tree(pid: int) -> list[psutil.Process]:
    """A process and all below it; empty: it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def die_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when its parent is killed, which no handler of the parent sees."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


@contextlib.contextmanager
def helper() -> Iterator[ProcessPoolExecutor]:
    """A process for work whose memory, on a GPU too, is free again afterwards. An exception or signal here ends it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # of the new process: waiting threads sleep
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=die_with_parent) as pool, contextlib.ExitStack() as interrupted:
        interrupted.callback(_end_children)
        yield pool
        interrupted.pop_all()  # it came to its end


def _end_children() -> None:
    for child in multiprocessing.active_children():
        child.terminate()
