"""HTTP servers in processes of their own, for tests that stop them, and wrong ones for tests of the client."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from tests.waiting import GUARD_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "secret"

# Serves the fake segmenter of a folder, which is its root: port, folder.
FAKE = """
import sys
from pathlib import Path
from samr1_verl.service.connections import run
from samr1_verl.service.engine import Engine
from samr1_verl.service.http_server import Limits, create_app
from tests.service.fake import FolderSegmenter
port, root = int(sys.argv[1]), Path(sys.argv[2])
engine = Engine(FolderSegmenter(root), 10_000_000)
run(create_app(engine, [root], None, Limits()), host="127.0.0.1", port=port, log_level="warning")
engine.close()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port: int) -> bool:
    """Whether a connection is taken; it is closed at once."""
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def start(command: list[str], port: int, scheme: str = "http", **variables: str) -> subprocess.Popen[bytes]:
    """Start a server; returns when it is healthy."""
    process = subprocess.Popen([sys.executable, *command], env=environment(**variables), cwd=ROOT)

    def healthy() -> bool:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{scheme}://127.0.0.1:{port}/health", timeout=GUARD_S).is_success
        return False

    wait_until(healthy)
    return process


def start_fake(port: int, root: Path) -> subprocess.Popen[bytes]:
    return start(["-c", FAKE, str(port), str(root)], port)
