"""Real parts that many tests share: the small SAM, tiny policies, a few drawn scenes."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training_runs import World

ROOT = Path(__file__).resolve().parents[1]
# A shell that starts the tests in the background has them ignore SIGINT, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Fixtures of tests that start Ray, a verl training or a browser.
HEAVY = {"ray_folder": "ray", "cluster": "ray", "transfer_queue": "ray", "chromium": "browser"}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow tests by what they start, and keep together what two processes should not do at once (pytest-xdist).

    A file's tests stay in one process, because they share what its fixtures make. Everything that starts Ray is one
    group: two trainings beside each other on two cores take longer than one after the other.
    """
    for item in items:
        groups = [HEAVY[name] for name in getattr(item, "fixturenames", ()) if name in HEAVY]
        if groups:
            item.add_marker("slow")
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(groups[0] if groups else item.path.stem))


@pytest.fixture(scope="session")
def small_sam() -> Path:
    """Folder with encoder.onnx and sam.onnx, fetched once a checkout."""
    from data import fetch_sam

    return fetch_sam.fetch(ROOT / "data" / "weights" / "small_sam")


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a randomly initialised tiny Qwen2.5-VL with its processor."""
    from data.tiny_world import tiny_policy

    return tiny_policy.save_random(tmp_path_factory.mktemp("random_policy"))


@pytest.fixture(scope="session")
def warm_policy() -> Path:
    """Folder of the committed tiny policy, warmed up by data/tiny_world/warm_up.py."""
    return ROOT / "data" / "checkpoints" / "tiny_policy"


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.parquet (8 scenes), val.parquet (4 scenes) and test.parquet (4 scenes)."""
    from tests.regress.golden_files import draw

    return draw(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def world(tmp_path: Path, drawn: Path, small_sam: Path, ray_folder: Path) -> World:
    """Where a tiny recipe can train: `world.train(...)` puts it into tmp_path / "run"."""
    return World(drawn, small_sam, tmp_path / "run", ray_folder)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for one Ray cluster's sockets, whose paths must stay short."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
