"""The corpus and exported rows: made here, or by tests/trainers/run.sh for an environment without verl."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainers import corpus as corpora


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of corpus.json."""
    if made := os.environ.get("SAMR1_CORPUS"):
        return Path(made)
    folder = tmp_path_factory.mktemp("corpus")
    corpora.write(folder)
    return folder


@pytest.fixture(scope="session")
def exported(drawn: Path, warm_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function of a trainer's name: rows.jsonl of drawn scenes, as `samr1 data export --for` writes it."""

    def export(trainer: str) -> Path:
        if made := os.environ.get("SAMR1_EXPORTED"):
            return Path(made) / trainer / "rows.jsonl"
        folder = tmp_path_factory.mktemp(trainer)
        options = ["--for", trainer, "--recipe", "samr1_tiny", "--policy", str(warm_policy), "--out", str(folder)]
        command = [sys.executable, "-m", "samr1_verl.cli", "data", "export", str(drawn / "val.parquet"), *options]
        subprocess.run(command, check=True)
        return folder / "rows.jsonl"

    return export
