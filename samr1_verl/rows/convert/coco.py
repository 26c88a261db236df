"""A COCO instances file, LVIS included, converted to rows.

By default, a row is one category of one image with all its objects. Its sentence comes from the category's name, and
crowds become the ignore mask. With a column, a row is one sentence of one annotation: the column is the annotation's
field that holds its sentence, or a list of sentences.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from samr1_verl.geometry.frames import turn_mask
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.convert.annotations import Picture, make_record, open_picture, segmentation_mask, truth_of
from samr1_verl.rows.convert.instances import instances_of, open_index
from samr1_verl.rows.convert.names import Flaw, checked_sentences, find_image, short
from samr1_verl.rows.convert.options import Exif, RunOptions
from samr1_verl.rows.convert.pipeline import Outcome, Problem, Workspace, convert, stamp
from samr1_verl.rows.record import DataError, Record

NOT_EXHAUSTIVE = "not_exhaustive_category_ids"  # LVIS: categories whose objects in an image are not all annotated


@dataclass(frozen=True)
class CocoJob:
    """One image (id, name, width, height, JSON extra) and its annotations.

    An annotation is (id, category id, category, crowd, JSON segmentation, JSON extra).
    """

    image: tuple
    annotations: list[tuple]


def jobs(database: sqlite3.Connection) -> Iterator[CocoJob]:
    """One job per image, in the order of image ids, and one per image id that the file does not list."""
    rows = database.execute(
        "SELECT a.image_id, i.name, i.width, i.height, i.extra, "
        "a.id, a.category_id, c.name, a.crowd, a.segmentation, a.extra FROM annotations a "
        "LEFT JOIN images i ON i.id = a.image_id LEFT JOIN categories c ON c.id = a.category_id "
        "ORDER BY a.image_id, a.category_id, a.id"
    )
    for _, group in groupby(rows, key=lambda row: row[0]):
        listed = list(group)
        yield CocoJob(listed[0][:5], [row[5:] for row in listed])


@dataclass(frozen=True)
class CocoConvert:
    """Rows and problems of one image.

    `sentence` holds {category}. `column`, where given, is the annotation's field that holds the sentence instead.
    `folder` is the folder of the parquet file.
    """

    file: Path
    images: Path
    folder: Path
    data_source: str
    sentence: str
    column: str | None
    exif: Exif

    def __call__(self, job: CocoJob) -> tuple[list[Record], list[Problem]]:
        image_id, name, width, height, extra = job.image
        try:
            if name is None:
                raise Flaw("no_such_image", "image_id", "no image has this id")
            picture = open_picture(find_image(self.images, name))
            orientation = picture.turn((width, height), self.exif)
        except Flaw as flaw:
            by_column = sum(len(self._sentences(annotation)) for annotation in job.annotations)
            rows = by_column if self.column else len({annotation[1] for annotation in job.annotations})
            return [], [Problem(str(self.file), f"image {image_id}", flaw.where, flaw.problem, rows)]
        image = _Image(self, picture, (width, height), orientation, image_id, json.loads(extra))
        if self.column:
            for annotation in job.annotations:
                image.by_column(annotation, self._sentences(annotation))
        else:
            for _, group in groupby(job.annotations, key=lambda annotation: annotation[1]):
                image.by_category(list(group))
        return image.records, image.problems

    def _sentences(self, annotation: tuple) -> list[Any]:
        sentences = json.loads(annotation[5]).get(self.column)
        return sentences if isinstance(sentences, list) else [sentences]


class _Image:
    """The rows and problems of one image, collected."""

    def __init__(
        self, to: CocoConvert, picture: Picture, drawn_wh: tuple[int, int], orientation: int, image_id: Any, extra: dict
    ):
        self.to, self.picture, self.drawn_wh, self.orientation = to, picture, drawn_wh, orientation
        self.image_id, self.extra = image_id, extra
        self.records: list[Record] = []
        self.problems: list[Problem] = []

    def by_column(self, annotation: tuple, sentences: list[Any]) -> None:
        """Add a row for each sentence of one annotation."""
        ann_id, _, category, *_ = annotation
        try:
            checked_sentences(sentences)
            truths = [truth_of(self._mask(annotation), self.orientation)]
        except Flaw as flaw:
            self._problem(f"annotation {ann_id}", flaw, len(sentences))
            return
        for number, sentence in enumerate(sentences):
            try:
                self._add(sentence, category, truths, None, {"ann_id": ann_id, "sentence": number})
            except Flaw as flaw:
                own = Flaw("unusable_sentence", f"{self.to.column}", flaw.problem)
                self._problem(f"annotation {ann_id}", own, 1)

    def by_category(self, annotations: list[tuple]) -> None:
        """Add a row for all objects of one category. Crowds become pixels that do not count."""
        ann_id, category_id, category, *_ = annotations[0]
        crowd = np.zeros(self.drawn_wh[::-1], dtype=bool)
        truths = []
        try:
            if category is None:
                raise Flaw("no_such_category", "category_id", f"no category has the id {category_id}")
            not_all = self.extra.get(NOT_EXHAUSTIVE, [])
            if not isinstance(not_all, list):
                raise Flaw("not_a_list", NOT_EXHAUSTIVE, f"found {short(not_all)}, expected a list of category ids")
            if category_id in not_all:
                raise Flaw(
                    "not_exhaustive",
                    NOT_EXHAUSTIVE,
                    f"objects of {category!r} in this image are not all annotated, so no mask is true",
                )
            for annotation in annotations:
                ann_id, is_crowd = annotation[0], annotation[3]
                mask = self._mask(annotation)
                if is_crowd:
                    crowd |= mask
                else:
                    truths.append(truth_of(mask, self.orientation))
            if not truths:
                raise Flaw(
                    "only_crowd", "iscrowd", f"the image has {category!r} only as a crowd: no object to point at"
                )
            sentence = self.to.sentence.replace("{category}", category.replace("_", " "))  # LVIS: aerosol_can
            ignore = encode_rle(turn_mask(crowd, self.orientation)) if crowd.any() else None
            self._add(sentence, category, truths, ignore, {"category_id": category_id})
        except Flaw as flaw:
            self._problem(f"annotation {ann_id}", flaw, 1)

    def _mask(self, annotation: tuple) -> np.ndarray:
        shape = segmentation_mask(json.loads(annotation[4]), self.drawn_wh)
        for note in shape.notes:
            self._problem(f"annotation {annotation[0]}", Flaw("part_without_pixel", "segmentation", note), 0)
        return shape.mask

    def _add(self, sentence: Any, category: str, truths: list, ignore: str | None, source: dict) -> None:
        self.records.append(
            make_record(
                data_source=self.to.data_source,
                sentence=sentence,
                picture=self.picture,
                folder=self.to.folder,
                truths=truths,
                ignore=ignore,
                category=category or "",
                source={"image_id": self.image_id, **source},
            )
        )

    def _problem(self, record: str, flaw: Flaw, rows: int) -> None:
        where = f"{record} of image {self.image_id}"
        self.problems.append(Problem(str(self.to.file), where, flaw.where, flaw.problem, rows))


def convert_coco(to: CocoConvert, out: Path, run: RunOptions) -> list[Outcome]:
    """Write the rows to the parquet file `out`, which lies in `to.folder`.

    Raises:
        DataError: an option or a file cannot be used, there is a problem where `run.strict`, or no row is left.
    """
    if not to.images.is_dir():
        raise DataError("no_images", "--images", f"no folder {to.images}. Unpack the images there")
    if not to.column and "{category}" not in to.sentence:
        raise DataError(
            "no_placeholder",
            "--sentence",
            f"found {to.sentence!r}, expected it to hold {{category}}: all rows would have the same sentence",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    plan = {"source": stamp(to.file), "to": repr(to)}
    with Workspace(out.parent / f".{out.name}.work", plan, run.watcher) as work:
        keep = [NOT_EXHAUSTIVE, *([to.column] if to.column else [])]
        database = open_index(work.folder / "index.sqlite", instances_of(to.file, keep))
        (total,) = database.execute("SELECT COUNT(DISTINCT image_id) FROM annotations").fetchone()
        outcome = convert(work, out, jobs(database), total, to, run)
        database.close()
    return [outcome]
