"""Damage of an evaluation's files: no flipped bit becomes a figure, and no answer is lost that is sound."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from samr1_verl.evaluation.journal import CHECKSUMS, PREDICTIONS
from samr1_verl.rows.record import DataError
from tests.errors import refused
from tests.evaluation.world import RulePolicy, evaluation, noisy, rows

ROWS, BLOCK = 10, 4


def nothing(done: int, total: int) -> None:
    """No progress bar."""


@pytest.mark.slow
@pytest.mark.parametrize("flips", [100, pytest.param(750, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", [PREDICTIONS, CHECKSUMS])
def test_no_flipped_bit_becomes_a_figure(name: str, flips: int, tmp_path: Path) -> None:
    """One at a time: every one leads to the same predictions, and at most one block is asked again."""
    file, folder = rows(tmp_path / "data", ROWS), tmp_path / "out"
    sound = evaluation(file, RulePolicy(noisy)).run(folder, False, nothing)
    files = {path: path.read_bytes() for path in (folder / PREDICTIONS, folder / CHECKSUMS)}
    whole, draw, asked = files[folder / name], random.Random(5), 0
    for _ in range(flips):
        for path, content in files.items():
            path.write_bytes(content)
        place, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
        (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        policy = RulePolicy(noisy)
        assert evaluation(file, policy).run(folder, False, nothing) == sound, f"byte {place}, bit {bit}"
        assert policy.asked <= 1 + (name == CHECKSUMS and whole[place : place + 1] == b"\n"), f"byte {place}, bit {bit}"
        assert (folder / PREDICTIONS).read_bytes() == files[folder / PREDICTIONS]
        asked += policy.asked
    assert asked >= 0.9 * flips, "nearly every flip was seen; some change a hexadecimal digit's case"


def test_damage_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, folder = rows(tmp_path / "data", ROWS), tmp_path / "out"
    evaluation(file, RulePolicy(noisy)).run(folder, False, nothing)
    lines = (folder / PREDICTIONS).read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b"sentence", b"sentense")
    (folder / PREDICTIONS).write_bytes(b"".join(lines))
    evaluation(file, RulePolicy(noisy)).run(folder, False, nothing)
    assert all(name in caplog.text for name in (f"{folder / PREDICTIONS}: ", "5 to 8", CHECKSUMS)), caplog.text


def test_predictions_without_checksums_are_refused(tmp_path: Path) -> None:
    file, folder = rows(tmp_path / "data", ROWS), tmp_path / "out"
    evaluation(file, RulePolicy(noisy)).run(folder, False, nothing)
    (folder / CHECKSUMS).unlink()
    with refused(DataError, "missing_checksums", f"{folder / CHECKSUMS}: ", "--restart"):
        evaluation(file, RulePolicy(noisy)).run(folder, False, nothing)
    assert len(evaluation(file, RulePolicy(noisy)).run(folder, True, nothing)) == ROWS
