"""What a machine has, also inside a container and where a folder does not exist yet."""

import shutil

import psutil
import pytest

from samr1_verl.preflight import machine


@pytest.fixture
def container(tmp_path, monkeypatch):
    def limited(limit: str) -> None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("300000000\n")
        (tmp_path / "memory.stat").write_text("anon 100000000\ninactive_file 200000000\n")
        monkeypatch.setattr(machine, "CGROUP", tmp_path)

    return limited


def test_the_limit_of_a_container_counts_without_pages_that_the_kernel_gives_back(container):
    container("1000000000")
    assert machine.host_memory() == (10**9, 9 * 10**8)


@pytest.mark.parametrize("limit", ["max", str(10**15)])
def test_a_container_without_a_limit_has_the_machines_memory(container, limit):
    container(limit)
    total, available = machine.host_memory()
    assert total == psutil.virtual_memory().total and 0 < available <= total


def test_a_machine_without_cgroups_has_its_own_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "none")
    assert machine.host_memory()[0] == psutil.virtual_memory().total


def test_a_folder_that_is_not_there_yet_lies_on_its_parents_disk(tmp_path):
    assert machine.free_disk(str(tmp_path / "runs" / "new")) == pytest.approx(
        shutil.disk_usage(tmp_path).free, rel=0.05
    )


def test_a_machine_without_a_gpu_has_a_report_that_says_so(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    report = machine.gpu_report()
    assert report["devices"] == [] and report["torch"]


def test_a_gpu_that_cannot_be_used_becomes_an_error_of_its_own(monkeypatch):
    """Here torch finds no driver: the same path as a GPU that fails."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda index: (_ for _ in ()).throw(RuntimeError("no driver"))
    )
    (device,) = machine.gpu_report()["devices"]
    assert device["error"] == "RuntimeError: no driver" and device["total"] == 0


def test_weights_are_here_missing_or_to_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    models = {"a": str(tmp_path), "b": str(tmp_path / "gone"), "c": "samr1-test/nowhere"}
    assert machine.facts([str(tmp_path / "x")], models)["models"] == {"a": "here", "b": "missing", "c": "download"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer = machine.facts([str(tmp_path / "x")], models)
    assert answer["models"]["c"] == "missing" and answer["missing"] == [1, str(tmp_path / "x")]
