"""Rows that attack `samr1 data check` and `samr1 data show`, and worker processes whose parent is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.geometry.images import sha256_of
from samr1_verl.rows.parallel import ordered_map
from samr1_verl.rows.record import SCHEMA, Record, write_records
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
BAD_RLES = ["", "~", "é", "\0", "PPP", "o" * 100_000, "0", "99", "1" * 100_000, "\ud7ff"]


def row(folder: Path, **changes: Any) -> dict[str, Any]:
    """The values of a sound row about an image of 8x6 pixels (WxH)."""
    path = folder / "a.png"
    if not path.exists():
        Image.new("RGB", (8, 6)).save(path)
    values = {"data_source": "a", "sentence": "b", "image": "a.png", "sha256": sha256_of(path), "height": 6, "width": 8}
    return {
        **values,
        "masks": ["724000g0"],
        "ignore": None,
        "boxes": [],
        "points": [],
        "category": "",
        "source": "{}",
    } | changes


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    """A parquet file of rows that no converter checked."""
    pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), folder / "rows.parquet")
    return folder / "rows.parquet"


def run(*words: object) -> tuple[int, str]:
    """Exit status and output of `samr1 data`. An exception that reaches the user fails the test."""
    done = CliRunner().invoke(app, ["data", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.mark.slow
def test_an_image_that_is_no_file_is_a_finding_of_its_row(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # the name of a socket has at most 107 bytes
        listener.bind("socket")
    names = [
        "/dev/zero",
        "zero",
        "/dev/tty",
        "fifo",
        "folder",
        "a\0b",
        "x" * 5000,
        "x/" * 4000,
        "loop",
        "socket",
        "none",
    ]
    path = write(tmp_path, row(tmp_path), *(row(tmp_path, image=name) for name in names))
    command = [sys.executable, "-m", "samr1_verl.cli", "data", "check", str(path), "--workers", "2", "--limit", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    findings = [line for line in done.stdout.splitlines() if line.startswith(f"  {path}: row ")]
    assert [int(line.split(": row ")[1].split(":")[0]) for line in findings] == list(range(1, len(names) + 1))


@pytest.mark.parametrize("rle", BAD_RLES)
def test_a_mask_that_does_not_decode_is_named_by_check_and_show(tmp_path: Path, rle: str) -> None:
    path = write(tmp_path, row(tmp_path, sentence="c"), row(tmp_path, masks=[rle]))
    status, output = run("show", path)
    assert status == 1 and f"{path}: row 1: " in output.replace("\n", "") and "RLE" in output, output
    status, output = run("check", path, "--workers", 1)
    assert status == 1 and "row 1, field 'masks.0'" in output and "problems: 1" in output, output


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 2**31 - 1, "width": 2**31 - 1, "masks": ["0QPPPPPlooooo3"]},
        {"height": 100_000, "width": 100_000, "masks": ["0PPigPZ9"], "image": "none.png"},
        {"height": 0},
        {"width": -8},
        {"boxes": [[float("nan")] * 4]},
        {"boxes": [[float("inf")] * 4]},
        {"boxes": [[1e300, 0, 1e308, 6]]},
        {"points": [[[float("nan"), 1e308]]]},
        {"boxes": [[1.0]]},
        {"source": "[" * 100_000},
        {"source": "[]"},
        {"source": "9" * 5_000},
        {"source": None},
        {"masks": None},
        {"masks": [None]},
        {"sha256": "x"},
        {"sentence": None},
        {"image": None},
    ],
)
def test_values_out_of_range_are_findings(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path, row(tmp_path, **changes))
    status, output = run("check", path, "--workers", 1)
    assert status == 1 and "row 0" in output and "problems: 0" not in output, output
    status, output = run("show", path, "--out", tmp_path / "sheet.png")
    assert status in (0, 1) and ("row 0" in output or status == 0), output


def test_files_that_are_no_rows_are_named(tmp_path: Path) -> None:
    sound = write(tmp_path, row(tmp_path)).read_bytes()
    bad = tmp_path / "bad.parquet"
    texts = sound.replace(b"724000g0", b"\xff\xfe4000g0")  # no UTF-8
    for content in (b"", b"PAR1", sound[:-40], sound[:100] + sound[140:], b"\0" * 1000, texts):
        bad.write_bytes(content)
        for command in ("check", "show"):
            status, output = run(command, bad)
            assert status == 1 and "bad.parquet" in output.replace("\n", ""), (content[:20], output)


def slow(number: int) -> int:
    sys.stdout.write(f"{os.getpid()}\n")
    sys.stdout.flush()
    time.sleep(600)
    return number


def work() -> None:
    list(ordered_map(slow, range(100), 2))


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed() -> None:
    command = [sys.executable, "-c", "from tests.attack.test_rows import work; work()"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        try:
            assert parent.stdout is not None
            workers = {int(parent.stdout.readline()) for _ in range(2)}
            assert len(workers) == 2 and all(alive(worker) for worker in workers)
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            wait_until(lambda: not any(alive(worker) for worker in workers))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


def alive(process: int) -> bool:
    """Whether the process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_sound_row_has_no_finding(tmp_path: Path) -> None:
    values = row(tmp_path)
    write_records(tmp_path / "good.parquet", [Record(**{**values, "source": {}})])
    status, output = run("check", tmp_path / "good.parquet", "--workers", 1)
    assert status == 0 and "problems: 0" in output, output
