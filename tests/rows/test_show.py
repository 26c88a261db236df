"""`samr1 data show`: the sheet shows masks, boxes and points where the rows say, the figures are of all rows."""

from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.show import GAP, TILE, look
from tests.row_files import make_record, write_rows


def show(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "show", *map(str, arguments)])
    return done.exit_code, done.output


def figures(output: str) -> dict[str, str]:
    return {line[:26].strip(): line[26:].strip() for line in output.splitlines()}


def test_figures_are_of_all_rows(tmp_path: Path) -> None:
    ignore = encode_rle(np.ones((48, 64), bool))
    rows = [
        make_record(tmp_path, sentence="one two three"),
        make_record(tmp_path, sentence="a ghost", masks=[], boxes=[], category=""),
        make_record(tmp_path, "wide.png", (128, 48), ignore=None, data_source="other"),
        make_record(tmp_path, sentence="x", ignore=ignore),
    ]
    status, output = show(write_rows(tmp_path / "rows.parquet", *rows), "--rows", "2")
    values = figures(output)
    assert status == 0 and values["rows"] == "4 (test 3, other 1)"
    assert values["image width"].endswith("64 to 128 (all)") and values["objects per row"] == "0: 1, 1: 3"
    assert values["sentence, words"].endswith("1 to 3 (all)") and values["sentence, characters"].endswith(
        "1 to 18 (all)"
    )
    assert values["mask, share of the image"].startswith("6.25 %") and values["rows with ignored pixels"] == "1"
    assert values["categories"] == "2 (rectangle 3, — 1)"
    with Image.open(tmp_path / "rows.png") as sheet:
        assert sheet.format == "PNG"


def test_masks_boxes_and_points_are_drawn_where_they_are(tmp_path: Path) -> None:
    plain = make_record(tmp_path, size_wh=(720, 360), masks=[], boxes=[])
    marked = make_record(tmp_path, size_wh=(720, 360), points=[[[200, 100]]])  # object: 180-360, 90-180
    before, after = (
        np.asarray(look(write_rows(tmp_path / f"{i}.parquet", row), 1, 0)[0]) for i, row in enumerate((plain, marked))
    )
    changed = (before[GAP : GAP + TILE] != after[GAP : GAP + TILE]).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    # shown at half size, at the bottom of its square
    assert abs(columns[0] - GAP - 90) <= 1 and abs(columns[-1] - GAP - 180) <= 1
    assert abs(rows[0] - TILE // 2 - 45) <= 1 and abs(rows[-1] - TILE // 2 - 90) <= 1
    assert tuple(after[GAP + TILE // 2 + 50, GAP + 100]) == (255, 255, 255), "the point"


def test_the_same_seed_shows_the_same_rows(drawn: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert show(drawn / "train.parquet", "--out", tmp_path / f"{name}.png", "--seed", str(seed))[0] == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_what_cannot_be_shown_is_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.parquet")
    (tmp_path / "a.png").unlink()
    status, output = show(file)
    assert status == 1 and f"{file}: row 0: {tmp_path / 'a.png'}: no such" in output
    assert f"{tmp_path / 'none.parquet'}: no such" in show(tmp_path / "none.parquet")[1]
    file = write_rows(tmp_path / "broken.parquet", make_record(tmp_path, masks=["0"]))
    status, output = show(file)
    assert status == 1 and f"{file}: row 0: RLE: " in output and "0 pixels" in output
