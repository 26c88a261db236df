"""Regression tests of a training: a run is recorded, and later runs are compared with it."""
