"""Checkpoints on disk, as verl finds them."""

from __future__ import annotations

from pathlib import Path

import torch
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from samr1_verl.training.checkpoints import TRACKER, name, remove


def checkpoint(folder: Path, step: int) -> None:
    place = folder / f"global_step_{step}"
    (place / "actor").mkdir(parents=True)
    torch.save({"step": step}, place / "data.pt")


def test_verl_resumes_from_the_named_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4)
    checkpoint(tmp_path, 8)
    assert find_latest_ckpt_path(str(tmp_path)) is None
    for step in (4, 8):
        name(tmp_path, step)
        assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / f"global_step_{step}")
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [TRACKER]


def test_weights_of_old_checkpoints_are_removed(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        checkpoint(tmp_path, step)
    remove(tmp_path, [4, 8])
    assert [(tmp_path / f"global_step_{step}" / "actor").exists() for step in (4, 8, 12)] == [False, False, True]
