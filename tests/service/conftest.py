"""Engines that end with their test."""

import pytest

from samr1_verl.service.engine import Engine

MEGABYTE = 1_000_000


@pytest.fixture
def make_engine():
    engines = []

    def make(segmenter, cache_bytes=MEGABYTE, cache_dir=None, **options):
        engines.append(Engine(segmenter, cache_bytes, cache_dir, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
