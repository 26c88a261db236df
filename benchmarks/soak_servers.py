"""Two `samr1 serve` processes for the soak test: one that is killed again and again, and one whose memory is read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

from benchmarks.places import ROOT, SMALL_SAM
from samr1_verl.service.wire import TOKEN_VARIABLE

TOKEN = "soak"
START_S = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Replica:
    """A server over `folder`, with little space for embeddings and uploads, and a short queue."""

    def __init__(self, port: int, folder: Path, cache: Path, queue: int) -> None:
        self.address, self._port, self.memory = f"http://127.0.0.1:{port}", port, list[tuple[float, int]]()
        options = {"backend": "onnx", "path": SMALL_SAM, "root": folder, "port": port, "device": "cpu"}
        options |= {"cache-gb": 0.05, "cache-dir": cache, "upload-gb": 0.004, "max-queue": queue}
        self._command = [sys.executable, "-m", "samr1_verl.cli", "serve"]
        self._command += [f"--{name}={value}" for name, value in options.items()]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; it answers a little later."""
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env={**os.environ, **threads, TOKEN_VARIABLE: TOKEN},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def ready(self) -> None:
        """Wait until the server answers. Raises TimeoutError."""
        deadline = time.monotonic() + START_S
        while not await asyncio.to_thread(self.healthy):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.address} does not answer")
            await asyncio.sleep(0.2)

    def healthy(self) -> bool:
        """Whether the server answers."""
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """End the process without a word to it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Ask the process to end, as an operator does. Returns its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def read_memory(self, seconds: float) -> None:
        """Note the resident memory, at a time since the start of the soak."""
        assert self._process is not None
        self.memory.append((seconds, psutil.Process(self._process.pid).memory_info().rss))


async def kill_again_and_again(replica: Replica, pause_s: float, counts: dict[str, int]) -> None:
    """Kill a replica after every pause, and start it again two seconds later. Ends when it is cancelled."""
    while True:
        await asyncio.sleep(pause_s)
        await asyncio.to_thread(replica.kill)
        await asyncio.sleep(2)
        replica.start()
        counts["kills"] = counts.get("kills", 0) + 1
        await replica.ready()


async def corrupt(cache: Path, pause_s: float, counts: dict[str, int]) -> None:
    """Damage a file of the embedding folder after every pause: a flipped byte, a cut, or another file's content."""
    draw = random.Random(3)
    while True:
        await asyncio.sleep(pause_s)
        files = sorted(file for file in cache.rglob("*") if file.is_file() and not file.name.startswith("."))
        if len(files) < 2:
            continue
        one, other = draw.sample(files, 2)
        with contextlib.suppress(OSError):  # the server removed it meanwhile
            content = bytearray(one.read_bytes())
            kind = draw.choice(("byte", "cut", "swap"))
            if kind == "byte":
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            elif kind == "cut":
                del content[len(content) // 2 :]
            else:
                content = bytearray(other.read_bytes())
            part = one.with_name(f".{one.name}.soak")
            part.write_bytes(content)
            part.replace(one)
            counts[f"cache {kind}"] = counts.get(f"cache {kind}", 0) + 1
