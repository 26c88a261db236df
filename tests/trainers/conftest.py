"""The folder of the corpus, which tests/trainers/run.sh makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpus() -> Path:
    return Path(os.environ["SAMR1_CORPUS"])


@pytest.fixture(scope="session")
def exported() -> Path:
    """rows.jsonl of eight drawn scenes, as `samr1 data export` wrote it for the check's trainer."""
    return Path(os.environ["SAMR1_EXPORTED"]) / "rows.jsonl"
