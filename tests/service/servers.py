"""HTTP servers in processes of their own, for tests that stop them, and wrong ones for tests of the client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "secret"

# Serves the fake segmenter: port, seconds an encode takes, a root.
FAKE = """
import sys
from pathlib import Path
from samr1_verl.service.connections import run
from samr1_verl.service.engine import Engine
from samr1_verl.service.http_server import Limits, create_app
from tests.service.fake import BoxSegmenter
port, seconds, root = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
engine = Engine(BoxSegmenter(seconds=seconds), 10_000_000)
run(create_app(engine, [root], None, Limits()), host="127.0.0.1", port=port, log_level="warning")
engine.close()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def start(command: list[str], port: int, scheme: str = "http", **variables: str) -> subprocess.Popen[bytes]:
    """Start a server; returns when it is healthy."""
    process = subprocess.Popen([sys.executable, *command], env=environment(**variables), cwd=ROOT)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            if httpx.get(f"{scheme}://127.0.0.1:{port}/health", timeout=5).is_success:
                return process
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError("the server is not healthy after 120 s")


def start_fake(port: int, root: Path, seconds: float = 0.0) -> subprocess.Popen[bytes]:
    return start(["-c", FAKE, str(port), str(seconds), str(root)], port)
