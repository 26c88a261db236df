"""Both runs are recipes that may start, and differ in the encodes ahead of time alone."""

from __future__ import annotations

from pathlib import Path

from benchmarks.demo_training import RECIPE
from benchmarks.encode_ahead import overrides
from samr1_verl.config import samr1_config
from samr1_verl.policies.inference_config import compose_recipe


def test_both_runs_start_a_replica_that_keeps_no_embedding(tmp_path: Path) -> None:
    off, on = (
        samr1_config(compose_recipe(RECIPE, overrides(5, ahead, tmp_path))).segmenter.service for ahead in (False, True)
    )
    assert (on.mode, on.cache_dir, on.encode_ahead) == ("ray", None, True)
    assert off == on.model_copy(update={"encode_ahead": False})
