"""Fixtures of the reward tests."""

import pytest

from samr1_verl.service import client as client_module
from tests.service.fake import BoxSegmenter


@pytest.fixture
def fake(monkeypatch) -> BoxSegmenter:
    """A segmenter whose mask is the box, behind the real client and engine."""
    segmenter = BoxSegmenter()
    monkeypatch.setattr(client_module, "load_segmenter", lambda config: segmenter)
    monkeypatch.setattr(client_module, "_clients", {})
    return segmenter
