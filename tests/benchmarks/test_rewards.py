"""The measured rewards score the answers that they are measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import rewards


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.new("RGB", (rewards.SIDE, rewards.SIDE)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "count"), [(name, count) for name, (_, _, counts) in rewards.CASES.items() for count in counts]
)
async def test_every_case_is_a_good_answer(name: str, count: int, image: Path) -> None:
    module, kwargs, _ = rewards.CASES[name]
    text, truth, extra = rewards.scene(count, image)
    text = rewards.seg_zero_response(text) if name == "seg_zero" else text
    scores: dict[str, Any] = await module.compute_score("benchmark", text, truth, extra, **kwargs)
    assert scores["acc"] > 0.5


@pytest.mark.parametrize("name", rewards.WORST)
def test_a_bad_response_is_as_long_as_its_case_says(name: str) -> None:
    assert len(rewards.response_of(rewards.WORST[name], 62_500, None)) == pytest.approx(62_500, rel=0.01)
