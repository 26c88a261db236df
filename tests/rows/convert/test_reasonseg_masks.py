"""ReasonSeg's masks: bit for bit those of LISA's get_mask_from_json by its description, with OpenCV 4.8's pixels."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from samr1_verl.cli.convert import reasonseg
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.rows.convert.reasonseg import paint
from tests.rows.convert.sources import problems_of, rows_of, status_of

SIZE = (24, 26)  # H, W
# Corners, and the pixels that OpenCV 4.8.0.74, the version of LISA, paints for them: polylines, then fillPoly.
PAINTED: dict[str, tuple[list[list[float]], str]] = {
    "a dot": ([[5.9, 7.2]], "o31`?"),
    "a dot named twice": ([[5, 7], [5, 7]], "o31`?"),
    "a dot beyond the border": ([[-3, 7]], "`c0"),
    "a line": ([[3, 4], [20, 17]], "\\21h0000O0100000O0100000O0100000O01000V3"),
    "a steep line, cut by the border": ([[4.5, -6], [9.5, 40]], "P38c05N2NJ6JS<"),
    "a line there and back": ([[2, 2], [20, 2], [2, 2]], "b11g000000000000000000000000000000000000f3"),
    "a triangle": ([[3, 2], [21, 9], [7, 22]], "Z23e05L4K5L2MO1O2N1O1O2N101N1O1O2N1O2N1Oh2"),
    "a thin triangle": ([[1, 1], [22, 4], [22, 6]], "i01g0000010O000001O0000010O0000001O0001O01O000T2"),
    "a bow tie": ([[2, 2], [20, 20], [20, 2], [2, 20]], "b1c06N2N2N2N2N2N2N2N2N02N2N2N2N2N2N2N2N2e3"),
    "a star": (
        [[12, 1], [18, 22], [1, 8], [23, 8], [5, 22]],
        "P11g01O1O001DN03LO52G0:70GH17NL122OL061I15NM50I278O00IHO70NM12;O100O1OY1",
    ),
    "corners beyond the border": ([[-8, 5], [12, -7], [31, 12], [10, 33]], "1b053N1OR<OoC1N2N2N2N2NK"),
    "a comb": (
        [[2, 20], [4, 3], [6, 20], [8, 3], [10, 20], [12, 3], [14, 20], [22, 22], [1, 23]],
        "^12`06H8K55K8HH8K55K8HH8K46K8H4L001O0000001O00b1",
    ),
    "the whole image": ([[-1, -1], [30, -1], [30, 30], [-1, 30]], "0`c0"),
    "a fan": (
        [[12, 12], [1, 2], [22, 3], [12, 12], [23, 14], [20, 22], [12, 12], [3, 22], [1, 15]],
        "j01<1M024JM46JK54LM32NO1000O021MN43KK76HI9:2N11OMDL:3HM72JO51K04OM31L05OJ27MH55MJ449MU1",
    ),
}


@pytest.mark.parametrize("name", PAINTED)
def test_pixels_are_those_of_lisas_opencv(name: str) -> None:
    corners, counts = PAINTED[name]
    labels, notes = paint([{"label": "target", "points": corners}], SIZE)
    assert np.array_equal(labels == 1, decode_rle(counts, SIZE)) and set(np.unique(labels)) <= {0, 1}
    assert bool(notes) == (not labels.any())


def lisa_labels(shapes: list[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """LISA's label image by its description.

    Shapes are drawn in the order of falling area, each as outline and filling; the area is that of the shape drawn
    alone; `flag` shapes are not drawn; `ignore` in a label gives 255, any other label 1.
    """
    drawn = []
    for item in shapes:
        if item["label"].lower() != "flag":
            corners = np.array([item["points"]], dtype=np.int32)
            alone = np.zeros(size, np.uint8)
            cv2.polylines(alone, corners, True, 1, 1)
            cv2.fillPoly(alone, corners, 1)
            drawn.append((alone.sum(), corners, 255 if "ignore" in item["label"].lower() else 1))
    labels = np.zeros(size, np.uint8)
    for index in np.argsort([area for area, _, _ in drawn])[::-1].astype(np.int32):
        cv2.polylines(labels, drawn[index][1], True, drawn[index][2], 1)
        cv2.fillPoly(labels, drawn[index][1], drawn[index][2])
    return labels


def random_shapes(seed: int) -> list[dict[str, Any]]:
    """Up to nine shapes of one to seven corners on SIZE, some beyond its border, some with equal areas."""
    rng = np.random.default_rng(seed)
    names = ["target", "Target", "ignore", "IGNORE_region", "flag", "FLAG"]
    shapes = [
        {"label": str(rng.choice(names)), "points": rng.uniform(-8, 32, (rng.integers(1, 8), 2)).tolist()}
        for _ in range(rng.integers(0, 10))
    ]
    if shapes and seed % 3 == 0:  # the same polygon under two labels: the order of equal areas decides
        shapes.append({**shapes[0], "label": "ignore"})
    return shapes


def write(folder: Path, name: str, shapes: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], "white").save(folder / f"{name}.jpg")
    content = {"text": ["a", "b"], "is_sentence": False, "shapes": shapes}
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_rows_are_lisas_masks_for_shapes_of_every_kind(tmp_path: Path) -> None:
    for seed in range(120):
        write(tmp_path / "ReasonSeg" / "test", f"{seed:03d}", random_shapes(seed))
    assert status_of(reasonseg, tmp_path / "ReasonSeg", tmp_path / "out", workers=1) == 3
    rows = rows_of(tmp_path / "out" / "test.parquet")
    assert len(rows) == 240, "every sentence of every image has its row"
    without = 0
    for seed in range(120):
        labels = lisa_labels(random_shapes(seed), SIZE)
        for row in rows[2 * seed : 2 * seed + 2]:
            masks = [decode_rle(counts, SIZE) for counts in row.masks]
            assert np.array_equal(masks[0] if masks else np.zeros(SIZE, bool), labels == 1)
            ignore = decode_rle(row.ignore, SIZE) if row.ignore else np.zeros(SIZE, bool)
            assert np.array_equal(ignore, labels == 255)
        without += not (labels == 1).any()
    assert without > 5
    problems = problems_of(tmp_path / "out" / "test.parquet")
    assert all(problem["rows"] == 0 for problem in problems)
    assert sum("is the target" in problem["problem"] for problem in problems) == without


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_first_sentence_is_that_of_papers_on_val_and_test(tmp_path: Path, split: str) -> None:
    write(tmp_path / "ReasonSeg" / split, "a", [{"label": "target", "points": [[1, 1], [9, 1], [9, 9]]}])
    assert status_of(reasonseg, tmp_path / "ReasonSeg", tmp_path / "out", workers=1, first_sentence=True) == 0
    assert [row.sentence for row in rows_of(tmp_path / "out" / f"{split}.parquet")] == ["a"]


@pytest.mark.parametrize(
    ("version", "fits"),
    [("4.7.0", False), ("4.8.0", True), ("4.10.0", True), ("4.11.0", False), ("4.13.0-dev", False), ("5.0.0", False)],
)
def test_another_opencv_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, version: str, fits: bool
) -> None:
    write(tmp_path / "ReasonSeg" / "val", "a", [{"label": "target", "points": [[1, 1], [9, 1], [9, 9]]}])
    monkeypatch.setattr(cv2, "__version__", version)
    status = status_of(reasonseg, tmp_path / "ReasonSeg", tmp_path / "out", workers=1)
    assert status == (0 if fits else 1)
    if not fits:
        message = capsys.readouterr().err
        assert all(name in message for name in (f"OpenCV: found {version},", "4.8 ", "4.11:")), message
        assert "pip install 'opencv-python-headless>=4.8,<4.11'" in message
