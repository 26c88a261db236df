"""Two trainings with vLLM's CPU build as the rollout are equal to the bit."""

from __future__ import annotations

from pathlib import Path

from tests.regress.commands import regress
from tests.regress.golden_files import furnish
from tests.vllm.settings import RECIPE, VLLM_ON_CPU


def test_two_trainings_are_equal_to_the_bit(tmp_path: Path, drawn: Path, small_sam: Path) -> None:
    place = furnish(tmp_path / "root", drawn, small_sam)
    regress(place, "record", RECIPE, *VLLM_ON_CPU, "--steps=2", "--repeat=0")
    assert regress(place, "check", "golden.json") == {"ok": True, "comparison": "exact"}
