"""The programs of the README run as they stand there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from samr1_verl.geometry.masks import decode_rle
from tests.docs.pages import blocks
from tests.rows.convert.sources import rows_of


def program(word: str) -> str:
    """The README's only Python block with a word."""
    (text,) = (block.text for block in blocks("README.md") if block.language == "python" and word in block.text)
    return text


@pytest.mark.slow
def test_the_rewards_example_prints_a_score(tmp_path: Path, drawn: Path, small_sam: Path) -> None:
    (tmp_path / "data" / "weights").mkdir(parents=True)
    (tmp_path / "data" / "shapes").symlink_to(drawn)
    (tmp_path / "data" / "weights" / "small_sam").symlink_to(small_sam)
    done = subprocess.run(
        [sys.executable, "-c", program("compute_score")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'score': " in done.stdout and "'format': 1.0" in done.stdout


def test_ones_own_data_becomes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Path) -> None:
    monkeypatch.chdir(tmp_path)
    drawn_row, *_ = rows_of(drawn / "train.parquet")
    mask = decode_rle(drawn_row.masks[0], (drawn_row.height, drawn_row.width))
    exec(program("write_records"), {"my_triples": [(drawn / drawn_row.image, drawn_row.sentence, mask)]})
    (row,) = rows_of(tmp_path / "data" / "mine" / "train.parquet")
    kept = {"data_source", "image", "category", "source"}
    assert row.model_dump(exclude=kept) == drawn_row.model_dump(exclude=kept)
    assert Path(row.image) == (drawn / drawn_row.image).absolute()
