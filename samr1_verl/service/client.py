"""What rewards and the evaluation ask for masks: one client a process and configuration."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from samr1_verl.config import ConfigError, SegmenterConfig, ServiceConfig, service_configs
from samr1_verl.geometry.images import ImageError
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters import load_segmenter
from samr1_verl.segmenters.base import Prediction, Prompt, SegmenterError
from samr1_verl.service.engine import Engine
from samr1_verl.geometry.overlap import Overlap

_log = logging.getLogger(__name__)


class Client(Protocol):
    """Prompts for an image in, masks or their overlap with the truth out; engine.Engine says what each does."""

    async def segment(self, image: str | Path, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]: ...

    async def overlap(
        self, image: str | Path, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth
    ) -> Overlap: ...

    async def prefetch(self, image: str | Path, sha256: str) -> None: ...


_clients: dict[tuple[SegmenterConfig, ServiceConfig], Client] = {}
_lock = threading.Lock()


def get_client(segmenter: Any, service: Any) -> Client:
    """The client of a configuration, made on its first use in this process.

    Args:
        segmenter: the recipe's `samr1.segmenter`: a mapping (a DictConfig too) with backend, path, device, dtype.
        service: the recipe's `samr1.service`: a mapping with mode, cache_gb, cache_dir, and the mode's own section.

    Raises:
        ConfigError: a key is missing, unknown or wrong, or the segmenter cannot be loaded.
    """
    return _client(service_configs(segmenter, service))


def _client(key: tuple[SegmenterConfig, ServiceConfig]) -> Client:
    with _lock:
        if key not in _clients:
            _clients[key] = _make(*key)
        return _clients[key]


def service_problems(service: ServiceConfig) -> Iterator[str]:
    """Why a mode cannot work on this machine: packages that are not installed."""
    needed = {"embedded": (), "ray": ("mmh3", "tenacity"), "http": ("httpx", "tenacity")}[service.mode]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        yield (
            f"samr1.service.mode is {service.mode}, and {', '.join(missing)} is not installed. "
            "Type: pip install 'samr1-verl[service]'"
        )


async def announce(segmenter: Any, service: Any, image: str | Path, sha256: str) -> None:
    """Tell the service of an image whose rollouts start, so that its encode runs while the policy generates.

    Does nothing where the segmenter is embedded, in another process than this one, or `encode_ahead` is false. A
    service that cannot be told is logged and no error: the request for the image will say what is wrong.
    """
    key = service_configs(segmenter, service)
    if key[1].mode == "embedded" or not key[1].encode_ahead:
        return
    try:
        await _client(key).prefetch(image, sha256)
    except (SegmenterError, ImageError, ConfigError) as error:
        _log.warning("encode ahead of time: %s", error)


def _make(segmenter: SegmenterConfig, service: ServiceConfig) -> Client:
    if problems := list(service_problems(service)):
        raise ConfigError("\n".join(problems))
    # Imported where they are needed: a reward with an embedded segmenter needs neither Ray nor an HTTP client.
    if service.mode == "ray":
        from samr1_verl.service.ray_client import RayClient

        return RayClient(segmenter, service)
    if service.mode == "http":
        from samr1_verl.service.http_client import HttpClient

        assert service.http is not None
        return HttpClient(service.http, service.timeout_s, service.attempt_s)
    folder = None if service.cache_dir is None else Path(service.cache_dir)
    return Engine(load_segmenter(segmenter), int(service.cache_gb * 1e9), folder, service.cache_dtype)
