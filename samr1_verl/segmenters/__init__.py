"""Promptable segmenters with one protocol (base.py): one module per backend, loaded by name.

A backend module has two functions. `load(config)` returns the segmenter. `problems(config)` yields the reasons why it
cannot be loaded here, without loading anything large. A backend's name with a dot is the import name of such a module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from samr1_verl.config import ConfigError, SegmenterConfig, hub_id_or_folder
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.base import Embedding, Prediction, Segmenter, SegmenterError

BACKENDS = {name: f"samr1_verl.segmenters.{name}" for name in ("onnx", "segment_anything", "transformers")}

__all__ = [
    "BACKENDS",
    "Embedding",
    "Prediction",
    "Prompt",
    "Segmenter",
    "SegmenterError",
    "load_segmenter",
    "segmenter_problems",
    "weights_digest",
]


def segmenter_problems(config: SegmenterConfig) -> Iterator[str]:
    """The reasons why this segmenter cannot be loaded on this machine, one message per reason.

    Reasons are an unknown backend, a missing package, missing weights, or an option that the backend does not have.
    """
    if config.backend not in BACKENDS and "." not in config.backend:
        yield (
            f"samr1.segmenter.backend is {config.backend!r}, this version has {', '.join(sorted(BACKENDS))}. "
            "Set samr1.segmenter.backend, and samr1.segmenter.path to weights that it reads"
        )
        return
    try:
        module = _module(config)
    except ImportError as error:
        yield f"samr1.segmenter.backend is {config.backend!r}, which does not import ({error})"
        return
    yield from module.problems(config)


def load_segmenter(config: SegmenterConfig) -> Segmenter:
    """Load the segmenter that `samr1.segmenter` names.

    Raises:
        ConfigError: the backend is unknown, its package is not installed, the weights are missing or of another model,
            or the device does not exist; one line per problem.
    """
    if problems := list(segmenter_problems(config)):
        raise ConfigError("segmenter_not_loadable", "samr1.segmenter", "\n".join(problems))
    return _module(config).load(config)


@lru_cache
def weights_digest(config: SegmenterConfig) -> str:
    """A digest of the weights' files, or a hub id's cached revision; empty: they are not on this machine."""
    place = hub_id_or_folder(config.path)
    if isinstance(place, str):
        cached = try_to_load_from_cache(place, "config.json")
        return Path(cached).parent.name if isinstance(cached, str) else ""
    files = sorted(path for path in ([place] if place.is_file() else place.glob("*")) if path.is_file())
    return hashlib.sha256("".join(f"{path.name} {sha256_of(path)}\n" for path in files).encode()).hexdigest()


def _module(config: SegmenterConfig) -> Any:
    return import_module(BACKENDS.get(config.backend, config.backend))
