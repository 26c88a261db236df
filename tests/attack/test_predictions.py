"""Hostile files of predictions: each is refused with its place, at once, without the memory that it asks for."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.geometry.masks import encode_rle
from tests.conftest import ROOT
from tests.evaluation.samples import sample_of
from tests.memory import memory_below
from tests.row_files import make_record, write_rows
from tests.service.servers import environment
from tests.waiting import GUARD_S

SIZE = (48, 64)  # H, W of both rows
EMPTY = {"size": [48, 64], "counts": encode_rle(np.zeros(SIZE, dtype=bool))}
LIMITED = """
import resource, sys
from samr1_verl.evaluation import predictions, row_names, rows
resource.setrlimit(resource.RLIMIT_DATA, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (1 << 29),) * 2)
from pathlib import Path
file = Path(sys.argv[2])
try:
    predictions.read_predictions(Path(sys.argv[1]), row_names.RowNames(rows.read_rows(file), file), False)
except predictions.DataError as error:
    print(error)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    return write_rows(folder / "rows.parquet", *(make_record(folder, f"{row}.png", SIZE[::-1]) for row in (0, 1)))


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """What the command imports takes more memory than its work."""
    assert CliRunner().invoke(app, ["rescore", "none.jsonl", "none.parquet", "--out", "none"]).exit_code == 1


def refused(predictions: Path, file: Path, *options: str, bomb: bool = False) -> str:
    """The message of the refusal, which leaves no results. That of a bomb takes no memory to speak of, and no work."""
    out = file.parent / "out"
    with memory_below(5_000_000) if bomb else contextlib.nullcontext():
        done = CliRunner().invoke(app, ["rescore", str(predictions), str(file), "--out", str(out), *options])
    said = " ".join(done.output.split())
    assert done.exit_code == 1 and said.startswith("error: "), f"{done.output} {done.exception!r}"
    assert len(said) < 1500 and not out.exists()
    return said


def line(**changes: Any) -> str:
    return json.dumps({"row": 0, "rle": EMPTY, **changes})


def rle(**changes: Any) -> dict[str, Any]:
    return {**EMPTY, **changes}


BOMBS = {
    "a number of 10,000 digits",
    "deep lists",
    "a huge mask",
    "a run of 2^40",
    "runs of 2^40 in a list",
    "a bomb",
}
LINES = {
    "no JSON": ("nonsense", "line 1: ", "JSON object"),
    "deep lists": ("[" * 100_000, "line 1: ", "JSON object"),
    "a number of 10,000 digits": ('{"row": ' + "9" * 10_000 + "}", "line 1: ", "JSON object"),
    "a list": ("[]", "line 1: ", '"row" and "rle"'),
    "no mask": ('{"row": 0}', "['row']", '"row" and "rle"'),
    "an unknown key": (line(mask="x"), "['row', 'rle', 'mask']"),
    "an unknown row": (line(row=2), "no row 2", "0 to 1"),
    "a negative row": (line(row=-1), "no row -1"),
    "a huge row": (line(row=1 << 80), str(1 << 80), "0 to 1"),
    "half a row": (line(row=0.5), "named by 0.5"),
    "true": (line(row=True), "named by True"),
    "other digits": (line(row="\u0661"), "no row '\u0661'"),
    "no RLE": (line(rle=None), "mask is None", "COCO RLE"),
    "a polygon": (line(rle=[[1, 1, 9, 1, 9, 9]]), "a list", "polygons"),
    "swapped sides": (line(rle=rle(size=[64, 48])), "[64, 48]", "[48, 64]"),
    "a huge mask": (line(rle={"size": [10**6, 10**6], "counts": [10**12]}), "[1000000, 1000000]", "[48, 64]"),
    "a run of 2^40": (line(rle=rle(counts="PPPPPPPP1")), "1099511627776 pixels", "48x64"),
    "runs of 2^40 in a list": (line(rle=rle(counts=[1 << 40, 5])), "1099511627781 pixels", "48x64"),
    "a negative run": (line(rle=rle(counts=[-5, 48 * 64 + 5])), "[-5, 3077]", "run lengths"),
    "runs that are true": (line(rle=rle(counts=[True, 48 * 64 - 1])), "[True, 3071]", "run lengths"),
    "too few pixels": (line(rle=rle(counts="1")), "1 pixels", "48x64"),
    "foreign characters": (line(rle=rle(counts="\u00e9~")), "RLE: ", "'é'"),
    "an open number": (line(rle=rle(counts="PP")), "RLE: ", "ends"),
    "counts that are a number": (line(rle=rle(counts=7)), "counts", "7"),
    "an unknown answer": (line(answer="maybe"), "'maybe'", "objects, nothing, unusable"),
    "an answer that is a list": (line(answer=["nothing"]), "answer", "['nothing']"),
    "nothing, with a mask": (line(rle=rle(counts=[0, 48 * 64]), answer="nothing"), "'nothing'", "has pixels"),
    "a row twice": (f"{line()}\n{line()}", "line 2: ", "row 0", "--unite"),
    "an empty line": (f"{line()}\n\n{line(row=1)}", "line 2: ", "JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_is_refused_with_its_number(name: str, file: Path, tmp_path: Path) -> None:
    content, *names = LINES[name]
    (tmp_path / "p.jsonl").write_text(content + "\n")
    said = refused(tmp_path / "p.jsonl", file, bomb=name in BOMBS)
    assert all(part in said for part in names), said


def test_bytes_that_are_no_text_and_empty_files_are_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe\n")
    assert "line 1: " in (said := refused(tmp_path / "p.jsonl", file)) and "UTF-8" in said
    (tmp_path / "p.jsonl").write_bytes(b"")
    assert "no predictions" in refused(tmp_path / "p.jsonl", file)
    (tmp_path / "folder").mkdir()
    assert "no predictions" in refused(tmp_path / "folder", file)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_a_value_without_end_takes_little_memory(name: str, file: Path, tmp_path: Path) -> None:
    """Lines: 2 GB without a line break, as a file with a hole. COCO results: a text of 20 MB."""
    (tmp_path / name).write_text("" if name == "p.jsonl" else '[{"image_id": 0, "segmentation": "' + "A" * 20_000_000)
    if name == "p.jsonl":
        os.truncate(tmp_path / name, 1 << 31)
    command = [sys.executable, "-c", LIMITED, str(tmp_path / name), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GUARD_S, env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert ("16777217 characters" in done.stdout) or ("16777216 bytes" in done.stdout)


RESULTS: dict[str, tuple[Any, ...]] = {
    "an object": ({"annotations": []}, "no predictions"),
    "numbers": ([1, 2], "result 0: ", "1"),
    "a box alone": ([{"image_id": 0, "bbox": [1, 2, 3, 4]}], "result 0: ", "image_id"),
    "a polygon": ([{"image_id": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]}], "a list", "polygons"),
    "an unknown image": ([{"image_id": 7, "segmentation": EMPTY}], "result 0: "),
    "a huge mask": ([{"image_id": 0, "segmentation": {"size": [1 << 20, 1 << 20], "counts": "PPPPPPPP1"}}],
                    "[1048576, 1048576]"),
    "deep lists": ([{"image_id": 0, "segmentation": json.loads("[" * 60 + "]" * 60)}], "32 levels"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_bad_coco_results_are_refused_with_their_number(name: str, file: Path, tmp_path: Path) -> None:
    content, *names = RESULTS[name]
    (tmp_path / "p.json").write_text(json.dumps(content))
    said = refused(tmp_path / "p.json", file, "--unite", bomb=name in BOMBS)
    assert all(part in said for part in names), said


def png(mode: str = "L", size_wh: tuple[int, int] = SIZE[::-1], value: Any = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size_wh, value).save(buffer, kind)
    return buffer.getvalue()


def grey(*values: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.resize(np.array(values, dtype=np.uint8), SIZE)).save(buffer, "PNG")
    return buffer.getvalue()


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", SIZE[::-1], value) for value in (0, 255)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def bomb() -> bytes:
    """The header says 60,000 x 60,000."""
    whole = bytearray(png())
    whole[16:24] = struct.pack(">II", 60_000, 60_000)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    return bytes(whole)


PNGS: dict[str, tuple[Any, ...]] = {
    "no image": ("0.png", lambda: b"no image", "readable PNG"),
    "half a file": ("0.png", lambda: png()[:60], "readable PNG"),
    "a JPEG": ("0.png", lambda: png(kind="JPEG"), "JPEG"),
    "an animation": ("0.png", animated, "several pictures"),
    "colours": ("0.png", lambda: png("RGB"), "mode RGB", "one channel"),
    "a palette": ("0.png", lambda: png("P"), "mode P,"),
    "16 bits": ("0.png", lambda: png("I;16"), "mode I;16"),
    "swapped sides": ("0.png", lambda: png(size_wh=SIZE), "64x48 (HxW)", "48x64"),
    "a bomb": ("0.png", bomb),
    "smooth edges": ("0.png", lambda: grey(0, 128, 255), "[0, 128, 255]"),
    "1 and 255": ("0.png", lambda: grey(0, 1, 255), "[0, 1, 255]"),
    "an unknown row": ("2.png", png, "no row '2'"),
    "a name": ("cat.png", png, "no row 'cat'"),
    "another file": ("notes.txt", png, "unknown file"),
}


@pytest.mark.parametrize("name", PNGS)
def test_a_bad_png_is_refused_with_its_name(name: str, file: Path, tmp_path: Path) -> None:
    path, content, *names = PNGS[name]
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / path).write_bytes(content())
    said = refused(tmp_path / "masks", file, bomb=name in BOMBS)
    assert all(part in said for part in (f"{tmp_path / 'masks' / path}: ", *names)), said


def test_two_names_of_a_row_and_things_that_are_no_files_are_refused(file: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("0.png", "000.png"):
        (masks / name).write_bytes(png())
    assert "000.png: " in (said := refused(masks, file)) and "row 0" in said and "--unite" in said
    (masks / "000.png").unlink()
    (masks / "1.png").mkdir()
    assert "1.png: " in (said := refused(masks, file)) and "readable PNG" in said
    (masks / "1.png").rmdir()
    os.mkfifo(masks / "1.png")
    assert "1.png: " in (said := refused(masks, file)) and "readable PNG" in said
    for name in ("p.jsonl", "p.json"):
        os.mkfifo(tmp_path / name)
        assert "it is a FIFO" in refused(tmp_path / name, file)
    assert "no such file" in refused(tmp_path / "none.jsonl", file)
    assert "NAME.jsonl" in refused(file, file)


STORED = {
    "another image": ({}, "line 1: row 0", "'sentence 0'"),
    "a row that is not there": ({"index": 5}, "line 1: row 5", "0 to 1"),
    "a field of another type": ({"size": "large"}, "line 1: size: "),
}


@pytest.mark.parametrize("name", STORED)
def test_stored_predictions_of_other_rows_are_refused(name: str, file: Path, tmp_path: Path) -> None:
    changes, *names = STORED[name]
    (tmp_path / "p.jsonl").write_text(json.dumps({**sample_of(0, 3).model_dump(), **changes}) + "\n")
    said = refused(tmp_path / "p.jsonl", file)
    assert all(part in said for part in names), said
