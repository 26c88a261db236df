"""Folders that several benchmarks need: the checkout, and one for a Ray cluster."""

from __future__ import annotations

import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
SMALL_SAM = ROOT / "data" / "weights" / "small_sam"


def ray_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder for one Ray cluster's sockets, whose paths must stay short."""
    return tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)
