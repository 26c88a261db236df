"""Tests mirror the packages; import shared helpers as tests.<name>."""
