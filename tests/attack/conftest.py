"""Fixtures that several attacks use."""

from tests.service.conftest import make_engine

__all__ = ["make_engine"]
