"""The client of the segmenter for rewards and the evaluation: one per process and configuration."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from samr1_verl.config import ConfigError, SegmenterConfig, ServiceConfig, once_per_object, segmenter_config
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters.base import Prediction, SegmenterError
from samr1_verl.service.engine import engine_of
from samr1_verl.service.place import log_place

_log = logging.getLogger(__name__)


class Client(Protocol):
    """From an image and prompts to masks, or to their overlap with the true masks.

    engine.Engine documents the methods.
    """

    async def segment(self, image: str | Path, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]: ...

    async def overlap(
        self, image: str | Path, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth
    ) -> Overlap: ...

    async def prefetch(self, image: str | Path, sha256: str) -> None: ...


_clients: dict[SegmenterConfig, Client] = {}
_lock = threading.Lock()
_config_of = once_per_object(segmenter_config)


def get_client(segmenter: Any) -> Client:
    """The client of a segmenter, made on its first use in this process.

    Args:
        segmenter: the recipe's `samr1.segmenter`, as a mapping, a DictConfig or a SegmenterConfig: the model, and
            under `service` the place where it runs. It is validated once per object. A client is returned as it is.

    Raises:
        ConfigError: a key is missing, unknown or wrong, or the segmenter cannot be loaded.
    """
    if hasattr(segmenter, "overlap"):
        return segmenter
    config = _config_of(segmenter)
    with _lock:
        if config not in _clients:
            _clients[config] = _make(config)
        return _clients[config]


def service_problems(service: ServiceConfig) -> Iterator[str]:
    """The packages that the chosen mode needs and that are not installed, in one message."""
    if (fault := _missing_packages(service)) is not None:
        yield str(fault)


async def announce(segmenter: Any, image: str | Path, sha256: str) -> None:
    """Start the encode of an image whose rollouts start, so that it runs while the policy generates.

    Does nothing where the segmenter is embedded (it then lives in the reward worker, another process) or
    `encode_ahead` is false. A fault is logged and not raised: the later request for the image raises it.
    """
    service = _config_of(segmenter).service
    if service.mode == "embedded" or not service.encode_ahead:
        return
    try:
        await get_client(segmenter).prefetch(image, sha256)
    except (SegmenterError, ImageError, ConfigError) as error:
        _log.warning("encode ahead of time: %s", error)


def _missing_packages(service: ServiceConfig) -> ConfigError | None:
    needed = {"embedded": (), "ray": ("mmh3", "pynvml", "tenacity"), "http": ("httpx", "tenacity")}[service.mode]
    missing = ", ".join(name for name in needed if importlib.util.find_spec(name) is None)
    if not missing:
        return None
    return ConfigError(
        "package_not_installed",
        "samr1.segmenter.service.mode",
        f"found {service.mode}, and {missing} is not installed. Type: pip install 'samr1-verl[service]'",
    )


def _make(config: SegmenterConfig) -> Client:
    service = config.service
    if (fault := _missing_packages(service)) is not None:
        raise fault
    # Imported here: a reward with an embedded segmenter needs neither Ray nor an HTTP client.
    if service.mode == "ray":
        from samr1_verl.service.ray_client import RayClient

        return RayClient(config)
    if service.mode == "http":
        from samr1_verl.service.http_client import HttpClient

        assert service.http is not None
        log_place(f"the servers {', '.join(service.http.addresses)}", config)
        return HttpClient(service.http, service.timeout_s, service.attempt_s)
    engine = engine_of(config, timeout_s=service.timeout_s)
    log_place(engine.place(), config)
    return engine
