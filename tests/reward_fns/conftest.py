"""Fixtures of the reward tests."""

import pytest

from samr1_verl.service import client, engine
from tests.service.fake import BoxSegmenter


@pytest.fixture
def fake(monkeypatch) -> BoxSegmenter:
    """A segmenter whose mask is the box, behind the real client and engine."""
    segmenter = BoxSegmenter()
    monkeypatch.setattr(engine, "load_segmenter", lambda config: segmenter)
    monkeypatch.setattr(client, "_clients", {})
    return segmenter
