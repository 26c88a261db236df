"""Real parts that many tests share: the small SAM, tiny policies, a few drawn scenes."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.training_runs import World

ROOT = Path(__file__).resolve().parents[1]
# A shell that starts the tests in the background has them ignore SIGINT, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Fixtures that start a Ray cluster, and those that start a browser.
RAY = {"ray_folder", "ray_cluster", "cluster"}
BROWSER = {"chromium"}

# The same inputs at every run; `make test-all` has others each time, with the seed in its command.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they start: `ray`, and `slow` for those, for a browser, and for all that is `thorough`.

    Of two processes that share the tests, one begins with all that start Ray: two trainings beside each other on two
    cores take longer than one after the other. A file stays in one process, because its tests share fixtures.
    """
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & RAY:
            item.add_marker("ray")
        if fixtures & BROWSER or item.get_closest_marker("ray") or item.get_closest_marker("thorough"):
            item.add_marker("slow")
        item.add_marker(pytest.mark.xdist_group("ray" if item.get_closest_marker("ray") else item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(autouse=True)
def no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a test without the mark `slow` start no process."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("starts a process: give the test the mark slow, or ask in this process")

    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
        monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)


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
def refine_policy() -> Path:
    """Folder of the committed tiny policy that looks at masks, made by data/tiny_world/refine.py."""
    return ROOT / "data" / "checkpoints" / "tiny_policy_refine"


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.parquet (8 scenes), val.parquet (4 scenes) and test.parquet (4 scenes)."""
    from tests.regress.golden_files import draw

    return draw(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def world(tmp_path: Path, drawn: Path, small_sam: Path, ray_folder: Path) -> World:
    """Where a tiny recipe can train: `world.train(...)` puts it into tmp_path / "run"."""
    from tests.training_runs import World  # here: the environments of other trainers have no tensorboard

    return World(drawn, small_sam, tmp_path / "run", ray_folder)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    from tests.training_runs import short_folder

    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def ray_home() -> Iterator[Path]:
    """The folder of the cluster that modules share. The cluster ends with the session."""
    import ray

    from tests.training_runs import short_folder

    with short_folder() as folder:
        yield folder
        ray.shutdown()


@pytest.fixture(scope="module")
def ray_cluster(ray_home: Path) -> None:
    """One Ray cluster for every module that needs no other: four processors, and two GPUs by name."""
    import ray

    from tests.service.servers import environment

    if ray.is_initialized():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "4,6")  # what a scheduler gave this node
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        options = {"include_dashboard": False, "logging_level": "warning", "log_to_driver": False}
        ray.init(num_cpus=4, num_gpus=2, _temp_dir=str(ray_home), **options)
