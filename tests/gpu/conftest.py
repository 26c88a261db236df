"""Devices of the tests that need a GPU: the CPU shows, everywhere, that the tests themselves are right."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.segmenters.test_segment_anything import checkpoint, tiny  # noqa: F401  (fixtures: a tiny checkpoint)

WITHOUT = "needs a GPU, and torch sees none: make test-gpu on a machine with one"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=WITHOUT))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def show(test: str, device: str, **figures: Any) -> None:
    """One line of JSON with what was measured."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(json.dumps({"test": test, "device": name, **figures}))
