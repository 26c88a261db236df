"""The compared places are the same segmenter behind the mode that each is named after."""

from __future__ import annotations

from pathlib import Path

from benchmarks.service_modes import places
from benchmarks.service_scenes import segmenter_config
from samr1_verl import config


def test_every_mode_is_a_valid_section_of_the_same_segmenter(tmp_path: Path) -> None:
    own = segmenter_config("onnx", tmp_path)
    for mode, place in places(own, "http://127.0.0.1:8765").items():
        assert config.SegmenterConfig.model_validate(place.model_dump()) == place
        assert place.service.mode == mode
        assert place.model_copy(update={"service": own.service}) == own
