"""ReasonSeg as LISA ships it, converted to rows.

The folder holds train, val and test, each with pairs NAME.jpg and NAME.json. Each split becomes a parquet file, each
sentence a row. Polygons are painted as LISA paints them: largest first, so that small polygons lie on top. Pixels
labelled `ignore` become the row's ignore mask and are not part of the object. An image without a pixel of its target
gives rows without a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samr1_verl.geometry.files import open_regular
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.convert.annotations import make_record, open_picture, truth_of
from samr1_verl.rows.convert.json_files import LONGEST_VALUE, parse_json
from samr1_verl.rows.convert.names import Flaw, checked_sentences, checked_split, path_below, short
from samr1_verl.rows.convert.options import RunOptions
from samr1_verl.rows.convert.pipeline import Outcome, Problem, Workspace, convert
from samr1_verl.rows.record import DataError, Record

TARGET, IGNORE = 1, 255  # LISA's labels
OPENCV = ((4, 8), (4, 11))  # from, below: fillPoly paints other pixels from 4.11 on. LISA pins 4.8
MOST_SHAPES = 1000  # of an image; each is painted on its own, and ReasonSeg has some ten


def paint(shapes: Sequence[dict], size_hw: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """LISA's label image, HxW uint8 (0, TARGET or IGNORE), and notes about shapes that cover no pixel.

    Source: get_mask_from_json in LISA's utils/data_processing.py. Corners are cut to whole pixels, outlines belong to
    the polygon, one corner is a dot and two are a line. `flag` marks annotations that LISA's authors withdrew.

    Args:
        shapes: LISA's annotations, each with `label` and `points` [[x, y], …] in pixels of the original frame.
        size_hw: (H, W) of the image.

    Raises:
        Flaw: a shape has no label or no points, or lies far outside the image.
    """
    notes: list[str] = []
    painted: list[tuple[np.integer, np.ndarray, int]] = []
    for number, shape in enumerate(shapes):
        try:
            label, corners = shape["label"].lower(), np.asarray(shape["points"], dtype=np.float64)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise Flaw(
                "bad_shape", f"shapes[{number}]", f"found {short(shape)}, expected label and points ({error})"
            ) from error
        if label == "flag":
            continue
        if corners.ndim != 2 or corners.shape[1:] != (2,) or not np.isfinite(corners).all():
            raise Flaw(
                "bad_points", f"shapes[{number}].points", f"found {short(shape['points'])}, expected [[x, y], …]"
            )
        if corners.size and (np.abs(corners / size_hw[::-1] - 0.5) > 1.5).any():
            raise Flaw(
                "far_outside", f"shapes[{number}].points", f"far outside the image of {size_hw[1]}x{size_hw[0]} pixels"
            )
        polygon = corners.astype(np.int32)
        alone = np.zeros(size_hw, dtype=np.uint8)
        _fill(alone, polygon, TARGET)
        if not alone.any():
            notes.append(f"shapes[{number}] ({label}) covers no pixel: {short(shape['points'])}")
        painted.append((alone.sum(), polygon, IGNORE if "ignore" in label else TARGET))
    labels = np.zeros(size_hw, dtype=np.uint8)
    # NumPy's order of shapes with equal areas depends on the type: it is uint64 in LISA, too.
    for index in np.argsort([area for area, _, _ in painted])[::-1]:
        _fill(labels, painted[index][1], painted[index][2])
    return labels, notes


def _fill(canvas: np.ndarray, polygon: np.ndarray, value: int) -> None:
    """Paint a polygon, [N, 2] int32 XY pixels, and its outline on `canvas`, HxW uint8."""
    import cv2  # only here: it belongs to the extra `data`

    cv2.polylines(canvas, [polygon], True, (value,), 1)
    cv2.fillPoly(canvas, [polygon], (value,))


def check_opencv() -> None:
    """Raise where masks would not be those of LISA.

    Raises:
        DataError: the version of OpenCV paints other pixels than the version of LISA.
        ModuleNotFoundError: the package cv2 (extra `data`) is not installed.
    """
    import cv2

    lowest, above = OPENCV
    if not lowest <= tuple(int(part) for part in cv2.__version__.split(".")[:2]) < above:
        raise DataError(
            "wrong_opencv_version",
            "OpenCV",
            f"found {cv2.__version__}, expected at least {_dotted(lowest)} and below {_dotted(above)}: other versions "
            "paint other pixels than LISA's 4.8. Type: pip install 'opencv-python-headless>=4.8,<4.11'. Where vLLM is "
            "installed, which needs a newer OpenCV, do so in an environment of its own",
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def read_annotation(path: Path) -> dict[str, Any]:
    """The JSON of one image. LISA's files are UTF-8, a few cp1252. Raises Flaw where text or shapes are missing."""
    try:
        with open_regular(path) as file:
            data = file.read(LONGEST_VALUE + 1)  # parse_json refuses the longer ones
        try:
            annotation = parse_json(data.decode("utf-8"))
        except UnicodeDecodeError:
            annotation = parse_json(data.decode("cp1252"))
    except (ValueError, OSError) as error:
        raise Flaw("broken_json", "json", f"unreadable ({error}). Unpack the data set again") from error
    for name, least in (("text", 1), ("shapes", 0)):
        values = annotation.get(name) if isinstance(annotation, dict) else None
        if not isinstance(values, list) or len(values) < least:
            raise Flaw(
                "not_a_list", name, f"found {short(values)}, expected a list{' that is not empty' if least else ''}"
            )
    if len(annotation["shapes"]) > MOST_SHAPES:
        raise Flaw("too_many_shapes", "shapes", f"{len(annotation['shapes'])} shapes, expected at most {MOST_SHAPES}")
    return annotation


@dataclass(frozen=True)
class ReasonSegConvert:
    """Rows and problems of one annotation file below the folder `source`."""

    source: Path
    split: str
    folder: Path
    first_sentence: bool

    def __call__(self, path: Path) -> tuple[list[Record], list[Problem]]:
        texts: list[Any] = [None]
        try:
            name = f"{self.split}/{path.name}"
            annotation = read_annotation(path_below(self.source, name))
            texts = annotation["text"][:1] if self.first_sentence else checked_sentences(annotation["text"])
            # LISA reads images with OpenCV, which applies the EXIF orientation: its polygons are in the original frame.
            picture = open_picture(path_below(self.source, str(Path(name).with_suffix(".jpg"))))
            labels, notes = paint(annotation["shapes"], picture.size_hw)
        except Flaw as flaw:
            return [], [Problem(str(path), "annotation", flaw.where, flaw.problem, len(texts))]
        problems = [Problem(str(path), "annotation", "shapes", note, 0) for note in notes]
        target, ignore = labels == TARGET, labels == IGNORE
        truths = [truth_of(target, 1)] if target.any() else []
        if not truths:
            text = "no pixel is the target. The rows are kept without a target, as LISA keeps the image"
            problems.append(Problem(str(path), "annotation", "shapes", text, 0))
        records = []
        for number, text in enumerate(texts):
            try:
                records.append(
                    make_record(
                        data_source="reasonseg",
                        sentence=text,
                        picture=picture,
                        folder=self.folder,
                        truths=truths,
                        ignore=encode_rle(ignore) if ignore.any() else None,
                        source={
                            "split": self.split,
                            "name": path.stem,
                            "sentence": number,
                            "is_sentence": short(annotation.get("is_sentence")),
                        },
                    )
                )
            except Flaw as flaw:
                problems.append(Problem(str(path), f"text[{number}]", flaw.where, flaw.problem, 1))
        return records, problems


def convert_reasonseg(
    folder: Path, out: Path, splits: Sequence[str], first_sentence: bool, run: RunOptions
) -> list[Outcome]:
    """Write OUT/SPLIT.parquet for each of `splits` (empty: all).

    Args:
        folder: folder with train, val and test.
        first_sentence: one row per image, with its first sentence, as LISA and Seg-Zero evaluate val and test.

    Raises:
        DataError: a split does not exist, a problem where `run.strict`, no row is left, or as check_opencv.
        ModuleNotFoundError: the package cv2 (extra `data`) is not installed.
    """
    check_opencv()  # here, not in each worker
    present = {path.parent.name for path in folder.glob("*/*.json")} - {"explanatory"}
    unknown = sorted(set(splits) - present)
    if unknown or not present:
        available = ", ".join(sorted(present)) or "no folder with NAME.json files"
        raise DataError("no_such_split", f"{folder}", f"no split {', '.join(unknown) or 'at all'}, it has: {available}")
    chosen = splits or sorted(present)
    try:
        chosen = [checked_split(split) for split in chosen]
    except Flaw as flaw:
        raise DataError.within(str(folder), flaw) from flaw
    out.mkdir(parents=True, exist_ok=True)
    plan = {"folder": folder.resolve(), "first": first_sentence}
    outcomes = []
    with Workspace(out / ".reasonseg.work", plan, run.watcher) as work:
        for split in chosen:
            files = sorted((folder / split).glob("*.json"))
            function = ReasonSegConvert(folder, split, out, first_sentence)
            outcomes.append(convert(work, out / f"{split}.parquet", files, len(files), function, run))
    return outcomes
