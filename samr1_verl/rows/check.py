"""Validation of rows against their images and masks, and a search for duplicate rows and images that files share.

Rows are read as a stream and checked on all cores. Memory holds two digests of 16 bytes per row and the digest of each
image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from samr1_verl.geometry.images import ImageError, ImageFile
from samr1_verl.geometry.masks import MaskError, box_of, decode_rle
from samr1_verl.rows.parallel import ordered_map
from samr1_verl.rows.record import MAX_RATIO, DataError, Record, iter_rows, parse_record, resolve_image

SLACK = 1.0  # pixels by which a box may miss its mask or leave the image: annotation tools round


@dataclass(frozen=True)
class Problem:
    """A fault of a row or of a file. Problems of one `kind` are counted together."""

    kind: str
    text: str


@dataclass
class Summary:
    """Counts of one file. `repeats`: rows with the image, sentence and objects of another row, but other ids."""

    path: Path
    rows: int = 0
    images: int = 0
    repeats: int = 0


@dataclass(frozen=True)
class _Group:
    """Consecutive rows about one image. `first` is the number of the first row."""

    path: Path
    first: int
    rows: list[dict]


@dataclass
class _Checked:
    """Problems of a group's rows, and the digests of each readable row: number, image, content, whole row."""

    path: Path
    count: int
    problems: list[Problem] = field(default_factory=list)
    digests: list[tuple[int, str, bytes, bytes]] = field(default_factory=list)


def check_files(
    files: Sequence[Path], workers: int | None = None, advance: Callable[[int], None] = lambda rows: None
) -> Iterator[Problem | Summary]:
    """The problems of each file, in order of rows, and its summary after them.

    An image that two files share is a problem: a test file must not hold images of the training file.

    Args:
        workers: number of processes; None: one per core.
        advance: receives the number of rows that were checked since its last call.

    Raises:
        DataError: a file is missing, is not a parquet file of rows, or has another schema version.
    """
    owners: dict[str, Path] = {}  # image digest: the first file with this image
    groups = (group for path in files for group in _groups(path))
    results = ordered_map(_check_group, groups, workers)
    for path, of_file in groupby(results, key=lambda result: result.path):
        summary, seen = Summary(path), _Seen()
        shared: dict[Path, list[int]] = {}
        images: set[str] = set()
        for result in of_file:
            yield from result.problems
            for row, digest, content, whole in result.digests:
                if digest not in images and owners.setdefault(digest, path) != path:
                    shared.setdefault(owners[digest], []).append(row)
                images.add(digest)
                if (first := seen.whole.setdefault(whole, row)) != row:
                    yield Problem("duplicate", f"{path}: row {row} is row {first} again. Remove one of them")
                elif seen.content.setdefault(content, row) != row:
                    summary.repeats += 1
            summary.rows += result.count
            advance(result.count)
        for other, rows in shared.items():
            yield Problem(
                "leak",
                f"{path}: shares images with {other}: {len(rows)}, the first that of row {rows[0]}. Remove their rows "
                "from one of the files",
            )
        summary.images = len(images)
        yield summary


@dataclass
class _Seen:
    """Digests of the rows of one file, each with the number of its first row."""

    whole: dict[bytes, int] = field(default_factory=dict)
    content: dict[bytes, int] = field(default_factory=dict)


def _groups(path: Path) -> Iterator[_Group]:
    for _, numbered in groupby(enumerate(iter_rows(path)), key=lambda pair: pair[1]["image"]):
        rows = list(numbered)
        yield _Group(path, rows[0][0], [row for _, row in rows])


def _check_group(group: _Group) -> _Checked:
    result = _Checked(group.path, len(group.rows))
    image: tuple[str, tuple[int, int]] | None = None
    for offset, row in enumerate(group.rows):
        number = group.first + offset
        try:
            record = parse_record(row, group.path, number)
        except DataError as error:
            result.problems.append(Problem("row", str(error)))
            continue
        where = f"{group.path}: row {number}"
        if offset == 0 or image is None:
            try:
                path = resolve_image(record, group.path)
                file = ImageFile.read(path)
                image = file.sha256, file.rgb().size
            except ImageError as error:
                if offset == 0:
                    result.problems.append(Problem("image", f"{where}: {error}"))
        if image is not None:
            result.problems += _image_problems(record, image, where)
        result.problems += _ratio_problems(record, where)
        result.problems += _object_problems(record, where)
        result.digests.append((number, record.sha256, *_digests(record)))
    return result


def _image_problems(record: Record, image: tuple[str, tuple[int, int]], where: str) -> Iterator[Problem]:
    digest, size = image
    if digest != record.sha256:
        yield Problem(
            "digest",
            f"{where}: {record.image} has the SHA-256 {digest}, the row says {record.sha256}: the file was "
            "changed after the data was prepared. Prepare it again",
        )
    if size != (record.width, record.height):
        yield Problem(
            "size",
            f"{where}: {record.image} is {size[0]}x{size[1]} pixels, the row says {record.width}x{record.height}. "
            "Prepare the data again",
        )


def _ratio_problems(record: Record, where: str) -> Iterator[Problem]:
    shorter, longer = sorted((record.width, record.height))
    if longer > MAX_RATIO * shorter:
        yield Problem(
            "ratio",
            f"{where}: {record.image} is {record.width}x{record.height} pixels, expected at most {MAX_RATIO} times as "
            "long as wide: Qwen's processors refuse it. Leave the row out, or stretch every image with "
            "samr1.policy_size",
        )


def _object_problems(record: Record, where: str) -> Iterator[Problem]:
    size = (record.height, record.width)
    boxes: Sequence[list[float] | None] = record.boxes or [None] * len(record.masks)
    fields = [(f"masks.{i}", rle, box) for i, (rle, box) in enumerate(zip(record.masks, boxes, strict=True))]
    if record.ignore is not None:
        fields.append(("ignore", record.ignore, None))
    for name, counts, box in fields:
        place = f"{where}, field {name!r}"
        try:
            mask = decode_rle(counts, size)
        except MaskError as error:
            yield Problem("mask", f"{place}: {error}. Prepare the data again")
            continue
        if not mask.any():
            yield Problem("mask", f"{place}: it is empty. A row without a target has no masks at all")
        elif box is not None:
            yield from _box_problems(mask, box, place)
    for index, box in enumerate(record.boxes):
        left, top, right, bottom = box
        inside = min(left, top) >= -SLACK and right <= record.width + SLACK and bottom <= record.height + SLACK
        if not (left < right and top < bottom and inside):
            yield Problem(
                "box", f"{where}, field 'boxes.{index}': {box} has no area, or leaves the image of {size} H, W"
            )
    for index, points in enumerate(record.points):
        if not all(0 <= x <= record.width and 0 <= y <= record.height for x, y in points):
            yield Problem("point", f"{where}, field 'points.{index}': {points} leave the image of {size} H, W")


def _box_problems(mask: np.ndarray, box: Sequence[float], where: str) -> Iterator[Problem]:
    tight = box_of(mask)
    missed = [box[0] - tight[0], box[1] - tight[1], tight[2] - box[2], tight[3] - box[3]]
    if max(missed) > SLACK:
        yield Problem("box", f"{where}: its box {list(box)} does not enclose it, the mask reaches {tight}")


def _digests(record: Record) -> tuple[bytes, bytes]:
    """Digest of the row's image, sentence and objects, and digest of the whole row."""
    content = record.model_dump(include={"sha256", "sentence", "masks", "ignore", "boxes"})
    return _digest(content), _digest(record.model_dump())


def _digest(values: dict) -> bytes:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def first_of_each_kind(problems: Iterable[Problem], limit: int) -> list[str]:
    """Texts of at most `limit` problems per kind, and a line with the number of the others. `limit` 0: all."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem.text)
    lines = []
    for kind, texts in kinds.items():
        shown = texts[:limit] if limit else texts
        lines += shown
        if len(texts) > len(shown):
            lines.append(f"… and {len(texts) - len(shown)} more of kind {kind!r}; --limit 0 shows all")
    return lines
