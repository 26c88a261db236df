"""Where replicas of the segmenter are placed, and what they ask Ray for."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pynvml
import pytest

from samr1_verl.config import ConfigError, RayServiceConfig
from samr1_verl.service import placement
from tests.errors import refused


def test_the_gpu_with_the_most_free_memory_is_first_and_others_follow_in_turn():
    gpus = placement.visible_gpus("4, GPU-b2,6")
    assert gpus == ["4", "GPU-b2", "6"]
    assert [placement.shared_gpu(gpus, [5, 9, 7], rank) for rank in range(4)] == ["GPU-b2", "6", "4", "GPU-b2"]
    assert [placement.shared_gpu(gpus, [0, 0, 0], rank) for rank in range(3)] == gpus, "where no driver tells"
    with refused(ConfigError, "no_gpu", "samr1.segmenter.service.ray.gpus: found shared", "this node"):
        placement.shared_gpu(placement.visible_gpus(""), [], 0)


@pytest.mark.parametrize(("gpu", "asked"), [("3", ("index", 3)), ("GPU-b2", ("uuid", "GPU-b2"))])
def test_the_driver_is_asked_for_free_memory(gpu, asked, monkeypatch):
    calls = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: calls.append(("index", index)))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: calls.append(("uuid", uuid)))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(free=7 << 30))
    assert placement.free_memory(gpu) == 7 << 30 and calls == [asked]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="a machine without a driver")
def test_without_a_driver_every_gpu_is_alike():
    assert placement.free_memory("0") == 0


NODES = [  # a cluster of two GPU models, a CPU node, and a GPU node that has left it
    {"NodeID": "h100", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 8.0, "accelerator_type:H100": 1.0}},
    {"NodeID": "cpu", "Alive": True, "Resources": {"CPU": 64.0}},
    {"NodeID": "a100", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100": 1.0}},
    {"NodeID": "gone", "Alive": False, "Resources": {"GPU": 8.0}},
]


def test_gpus_cannot_be_shared_where_there_are_none():
    config = RayServiceConfig.model_validate({"gpus": "shared", "cpus": 1, "min_replicas": 1, "max_replicas": 1})
    with refused(ConfigError, "no_gpu", "samr1.segmenter.service.ray.gpus: found shared", "1 nodes", "to 0"):
        placement.deployment_options(config, NODES[1:2])


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (0, {"num_cpus": 2.0, "num_gpus": 0.0}),
        (0.25, {"num_cpus": 2.0, "num_gpus": 0.25}),
        (
            "shared",
            {
                "num_cpus": 2.0,
                "num_gpus": 0.0,
                "runtime_env": {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
                "label_selector": {"ray.io/node-id": "in(a100, h100)"},
            },
        ),
    ],
)
def test_what_a_replica_asks_ray_for(gpus, expected):
    config = RayServiceConfig.model_validate({"gpus": gpus, "cpus": 2, "min_replicas": 2, "max_replicas": 2})
    options = placement.deployment_options(config, NODES)
    assert options["ray_actor_options"] == expected
    assert options["num_replicas"] == 2 and "autoscaling_config" not in options


def test_autoscaling_stays_within_its_bounds():
    config = RayServiceConfig.model_validate({"gpus": 1, "cpus": 1, "min_replicas": 1, "max_replicas": 4})
    options = placement.deployment_options(config, NODES)
    assert "num_replicas" not in options
    assert (options["autoscaling_config"].min_replicas, options["autoscaling_config"].max_replicas) == (1, 4)
