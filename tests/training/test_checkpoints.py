"""A run that was killed at any moment finds a whole checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from samr1_verl.training.checkpoints import TRACKER, name_latest, remove


def checkpoint(folder: Path, step: int, whole: bool = True) -> None:
    place = folder / f"global_step_{step}"
    (place / "actor").mkdir(parents=True)
    torch.save({"step": step}, place / "data.pt")
    if not whole:
        (place / "data.pt").write_bytes((place / "data.pt").read_bytes()[:-50])


def test_a_run_without_a_tracker_starts_from_scratch(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4)
    assert name_latest(tmp_path) is None and not (tmp_path / TRACKER).exists()


def test_a_sound_tracker_stays(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4)
    checkpoint(tmp_path, 8)
    (tmp_path / TRACKER).write_text("4")
    assert name_latest(tmp_path) == 4 and (tmp_path / TRACKER).read_text() == "4"


@pytest.mark.parametrize("left", ["", "\0\0", "1x"])
def test_a_damaged_tracker_names_the_newest_whole_checkpoint(left: str, tmp_path: Path) -> None:
    for step, whole in ((4, True), (8, True), (12, False)):
        checkpoint(tmp_path, step, whole)
    (tmp_path / "global_step_16" / "actor").mkdir(parents=True)
    (tmp_path / TRACKER).write_text(left)
    assert name_latest(tmp_path) == 8
    assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_8")


def test_weights_of_old_checkpoints_are_removed(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        checkpoint(tmp_path, step)
    remove(tmp_path, [4, 8])
    assert [(tmp_path / f"global_step_{step}" / "actor").exists() for step in (4, 8, 12)] == [False, False, True]
