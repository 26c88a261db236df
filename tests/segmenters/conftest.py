"""Small segmenters on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.segmenters.tiny_sams import save_all


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each kind of SAM of transformers, tiny and random."""
    return save_all(tmp_path_factory.mktemp("sams"))
