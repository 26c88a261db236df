"""What rewards and the evaluation ask for masks: one client a process and configuration."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from samr1_verl.config import SegmenterConfig, ServiceConfig, service_configs
from samr1_verl.ground_truth import GroundTruth
from samr1_verl.segmenters import load_segmenter
from samr1_verl.segmenters.base import Prediction, Prompt
from samr1_verl.service.engine import Counters, Engine, Overlap


class Client(Protocol):
    """Prompts for an image in, masks or their overlap with the truth out; engine.Engine says what each does."""

    async def segment(self, image: str | Path, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]: ...

    async def overlap(
        self, image: str | Path, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth
    ) -> Overlap: ...

    def counters(self) -> Counters: ...


_clients: dict[tuple[SegmenterConfig, ServiceConfig], Client] = {}
_lock = threading.Lock()


def get_client(segmenter: Any, service: Any) -> Client:
    """The client of a configuration, made on its first use in this process.

    Args:
        segmenter: the recipe's `samr1.segmenter`: a mapping (a DictConfig too) with backend, path, device, dtype.
        service: the recipe's `samr1.service`: a mapping with mode, cache_gb, cache_dir.

    Raises:
        ConfigError: a key is missing, unknown or wrong, or the segmenter cannot be loaded.
    """
    key = service_configs(segmenter, service)
    with _lock:
        if key not in _clients:
            _clients[key] = _embedded(*key)
        return _clients[key]


def _embedded(segmenter: SegmenterConfig, service: ServiceConfig) -> Engine:
    folder = None if service.cache_dir is None else Path(service.cache_dir)
    return Engine(load_segmenter(segmenter), int(service.cache_gb * 1e9), folder)
