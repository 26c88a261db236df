"""One client per process and configuration, and messages that say which configurations work."""

from __future__ import annotations

import threading

import pytest
from omegaconf import OmegaConf

from samr1_verl.config import ConfigError, samr1_config
from samr1_verl.preflight.inputs import check_segmenter
from samr1_verl.service import client as client_module
from samr1_verl.service import engine
from samr1_verl.service.client import announce, get_client
from tests.composing import compose_recipe
from tests.errors import refused
from tests.service.fake import BoxSegmenter, image_file

RAY = {"gpus": 0, "cpus": 1, "min_replicas": 1, "max_replicas": 1}
SERVICE = {"mode": "embedded", "cache_gb": 1, "cache_dir": None}
SEGMENTER = {"backend": "onnx", "path": "weights", "device": "auto", "dtype": "float32", "service": SERVICE}


def placed(**service: object) -> dict:
    """The segmenter with other keys of its service."""
    return SEGMENTER | {"service": SERVICE | service}


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """Paths of the segmenters loaded, in order."""
    paths: list[str] = []

    def load(config):
        paths.append(config.path)
        return BoxSegmenter()

    monkeypatch.setattr(engine, "load_segmenter", load)
    monkeypatch.setattr(client_module, "_clients", {})
    return paths


def test_equal_configurations_share_a_client(loads):
    first = get_client(SEGMENTER)
    assert get_client(OmegaConf.create(SEGMENTER)) is first
    assert get_client(SEGMENTER | {"path": "others"}) is not first
    assert loads == ["weights", "others"]


def test_threads_that_ask_at_once_make_one_client(loads):
    found, barrier = [], threading.Barrier(8)

    def ask():
        barrier.wait()
        found.append(get_client(SEGMENTER))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1 and len(found) == 8 and loads == ["weights"]


def test_a_configuration_is_validated_once_per_object_and_a_client_is_taken_as_it_is(loads, monkeypatch):
    first = get_client(SEGMENTER)
    monkeypatch.setattr(client_module.SegmenterConfig, "model_validate", None)  # a second validation would raise
    assert get_client(SEGMENTER) is first and get_client(first) is first


async def test_the_configured_bound_and_folder_are_used(loads, tmp_path):
    # 4,000 bytes: an embedding has 4,096
    client = get_client(placed(cache_gb=4e-6, cache_dir=str(tmp_path / "cache")))
    await client.segment(*image_file(tmp_path, 7), [])
    assert client.counters().cached_bytes == 0 and client.counters().encodes == 1
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("segmenter", "service", "names"),
    [
        ({}, {"mode": "grpc"}, ["samr1.segmenter.service.mode: ", "'embedded', 'ray' or 'http'", "found 'grpc'"]),
        ({}, {"mode": "http"}, ["samr1.segmenter.service: ", "mode is http", "section http"]),
        (
            {},
            {"mode": "http", "http": {"addresses": ["10.0.0.1:80"]}},
            ["samr1.segmenter.service.http.addresses.0: ", "10.0.0.1:80"],
        ),
        (
            {},
            {"ray": RAY | {"max_replicas": 1, "min_replicas": 2}},
            ["samr1.segmenter.service.ray: ", "max_replicas is 1", "min_replicas 2"],
        ),
        ({}, {"ray": RAY | {"gpus": "all"}}, ["samr1.segmenter.service.ray.gpus", "found 'all'"]),
        ({}, {"cache_gb": -1}, ["samr1.segmenter.service.cache_gb: ", "found -1"]),
        ({}, {"cache_tb": 1}, ["samr1.segmenter.service.cache_tb: "]),
        ({"dtype": "int4"}, {}, ["samr1.segmenter.dtype: ", "found 'int4'"]),
        ({"path": ""}, {}, ["samr1.segmenter.path: "]),
    ],
)
def test_a_wrong_value_names_its_key_and_what_it_may_be(loads, segmenter, service, names):
    with refused(ConfigError, "invalid_value", *names):
        get_client(placed(**service) | segmenter)
    assert loads == []


def test_a_mode_whose_packages_are_missing_says_what_to_type(loads, monkeypatch):
    monkeypatch.setattr(client_module.importlib.util, "find_spec", lambda name: None)
    for mode, section in (("ray", {"ray": RAY}), ("http", {"http": {"addresses": ["http://10.0.0.1:80"]}})):
        with refused(ConfigError, "package_not_installed", "service.mode", f"found {mode}", "tenacity", "[service]"):
            get_client(placed(mode=mode, **section))
    assert get_client(SEGMENTER) is not None


def test_other_machines_segmenters_are_not_looked_for_here():
    recipe = compose_recipe("samr1_tiny", "samr1.segmenter.path=nowhere/sam")
    assert len(list(check_segmenter(samr1_config(recipe)))) == 1
    recipe.samr1.segmenter.service.mode = "http"
    recipe.samr1.segmenter.service.http = {"addresses": ["http://10.0.0.1:80"]}
    assert list(check_segmenter(samr1_config(recipe))) == []


def test_every_mode_composes_from_the_recipe():
    for mode in ("embedded", "ray"):
        settings = samr1_config(compose_recipe("samr1", f"samr1.segmenter.service.mode={mode}"))
        assert settings.segmenter.service.mode == mode and settings.segmenter.service.ray.gpus == "shared"
    assert (
        samr1_config(compose_recipe("samr1_tiny", "samr1.segmenter.service.mode=ray")).segmenter.service.ray.gpus == 0
    )
    config = compose_recipe(
        "samr1", "samr1.segmenter.service.mode=http", "samr1.segmenter.service.http={addresses: ['http://10.0.0.1:80']}"
    )
    assert samr1_config(config).segmenter.service.http.addresses == ("http://10.0.0.1:80",)
    assert config.data.encode_ahead.service.mode == "http"


async def test_an_embedded_segmenter_is_not_announced_to(loads, tmp_path):
    await announce(SEGMENTER, *image_file(tmp_path, 7))
    assert loads == []


async def test_a_service_that_cannot_be_told_is_no_error(loads, tmp_path, caplog):
    far = placed(mode="http", http={"addresses": ["http://127.0.0.1:9"]}, timeout_s=0.2)
    await announce(far, *image_file(tmp_path, 7))
    assert "ahead of time" in caplog.text and "7.png" in caplog.text
    caplog.clear()
    await announce(far | {"service": far["service"] | {"encode_ahead": False}}, *image_file(tmp_path, 7))
    assert caplog.text == ""
