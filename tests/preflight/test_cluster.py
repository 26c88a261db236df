"""The doctor asks every node of a real cluster; the second node has another file system, cache and versions."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from omegaconf import OmegaConf
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.config import samr1_config
from samr1_verl.preflight import doctor, probe
from samr1_verl.preflight.cluster import cluster_address, examine_cluster
from tests.composing import compose_recipe
from tests.row_files import make_record, write_rows

HUB_ID = "samr1-test/policy"
# What another machine would be: it does not have the image, and an older verl is installed there.
OTHER_MACHINE = """
import os.path

there = os.path.exists
os.path.exists = lambda path: not str(path).endswith("only_here.png") and there(path)
"""


@pytest.fixture
def other_machine(tmp_path: Path) -> dict[str, str]:
    """Environment of the second node."""
    folder = tmp_path / "other_machine"
    (folder / "verl-0.9.0.dist-info").mkdir(parents=True)
    (folder / "verl-0.9.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: verl\nVersion: 0.9.0\n")
    (folder / "sitecustomize.py").write_text(OTHER_MACHINE)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub cache of this machine, and of the first node, that holds HUB_ID."""
    folder = tmp_path / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def cluster(hub: None, other_machine: dict[str, str], ray_folder: Path, monkeypatch) -> Iterator[Cluster]:
    ray.shutdown()  # the cluster that modules share; the next one starts it again
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=1, env_vars=other_machine)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def config(tmp_path: Path, small_sam: Path):
    rows = write_rows(tmp_path / "rows.parquet", make_record(tmp_path, "only_here.png"))
    config = compose_recipe("samr1_tiny", f"actor_rollout_ref.model.path={HUB_ID}", f"samr1.segmenter.path={small_sam}")
    return OmegaConf.merge(config, {"data": {"train_files": str(rows), "val_files": [str(rows)]}})


def test_every_node_is_asked_for_files_weights_and_versions(cluster, config):
    OmegaConf.update(config, "ray_kwargs.ray_init.address", cluster.address, force_add=True)
    first, second = sorted(examine_cluster(config, samr1_config(config)), key=lambda finding: len(finding.problems))
    assert first.problems == [] and "actor_rollout_ref.model.path: here" in first.detail
    assert " GB of host memory" in first.detail and not ray.is_initialized()
    files, model, verl = second.problems
    assert "1 files of data.train_files" in files and "only_here.png" in files
    assert "actor_rollout_ref.model.path is missing" in model and "comes with the checkout" in model
    assert "verl is 0.9.0, here 0.9.1." in verl and "pip install 'verl==0.9.1'" in verl


def test_the_doctor_shows_the_nodes(cluster, config, monkeypatch):
    monkeypatch.setattr(doctor, "_probe", probe.probe)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    sizes = ["--host-gb", "100", "--disk-gb", "100"]
    inputs = [
        f"data.train_files={config.data.train_files}",
        f"data.val_files={config.data.val_files[0]}",
        f"samr1.segmenter.path={config.samr1.segmenter.path}",
        f"actor_rollout_ref.model.path={config.actor_rollout_ref.model.path}",
    ]
    result = CliRunner().invoke(app, ["doctor", "--recipe", "samr1_tiny", *sizes, *inputs])
    assert result.exit_code == 1 and result.output.count("✓ node ") == result.output.count("✗ node ") == 1, (
        result.output
    )
    assert "only_here.png" in result.output


def test_a_cluster_that_does_not_answer_is_a_problem_with_its_address(config, monkeypatch):
    def unreachable(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")  # Ray's; `auto` would find another test's

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", unreachable)
    OmegaConf.update(config, "ray_kwargs.ray_init.address", "auto", force_add=True)
    (finding,) = examine_cluster(config, samr1_config(config))
    assert all(part in finding.problems[0] for part in ("ray_kwargs.ray_init.address", "is auto", "ray start --head"))


@pytest.mark.parametrize("address", [None, "local"])
def test_a_run_that_starts_its_own_ray_has_no_nodes_to_ask(config, address, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    OmegaConf.update(config, "ray_kwargs.ray_init.address", address, force_add=True)
    assert cluster_address(config) is None and list(examine_cluster(config, samr1_config(config))) == []
