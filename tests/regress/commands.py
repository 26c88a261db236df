"""`samr1 regress` as its users type it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from samr1_verl.rehearsal.process import without_a_cluster
from tests.training_runs import TIMEOUT_S


def regress(place: Path, *arguments: str, status: int = 0) -> dict:
    """The object in the last line of the command, which ran in the folder `place` and ended with this exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "samr1_verl.cli", "regress", *arguments],
        cwd=place,
        env=without_a_cluster(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == status, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
