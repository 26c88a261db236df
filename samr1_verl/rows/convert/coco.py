"""Any COCO instances file, LVIS included, to training rows.

    python data/coco.py --annotations instances_val2017.json --images val2017 --out data/coco/val.parquet
    python data/coco.py --annotations lvis_v1_val.json --images coco --out data/lvis/val.parquet --name lvis
    python data/coco.py --annotations mine.json --images images --out data/mine/train.parquet --column caption

By default a row is one category of one image with all its objects, and its sentence comes from the category's name;
crowds become the ignore mask. With --column a row is one annotation, and its sentence is what that field holds, text or
a list.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from samr1_verl.rows.convert.annotations import Exif, Flaw, Picture, make_record, open_picture, segmentation_mask, truth_of
from samr1_verl.rows.convert.pipeline import Outcome, Problem, Workspace, convert, report_and_exit, stamp
from samr1_verl.rows.convert.instances import find_image, instances_of, open_index

from samr1_verl.geometry.frames import turn_mask
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.record import DataError, Record

NOT_EXHAUSTIVE = "not_exhaustive_category_ids"  # LVIS: categories of an image with objects that nobody annotated


@dataclass(frozen=True)
class CocoJob:
    """One image and its annotations: (id, category id, category, crowd, JSON segmentation, JSON extra)."""

    image: tuple
    annotations: list[tuple]


def jobs(database: sqlite3.Connection) -> Iterator[CocoJob]:
    """One job an image, in the order of image ids; annotations of an image that is not listed come as one, too."""
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
    """Rows of one image. `sentence` holds {category}; `column`, where given, names the annotation's field instead."""

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
                raise Flaw("image_id", "no image has this id")
            picture = open_picture(find_image(self.images, name))
            orientation = picture.turn((width, height), self.exif)
        except Flaw as flaw:
            by_column = sum(len(self._sentences(one)) for one in job.annotations)
            rows = by_column if self.column else len({one[1] for one in job.annotations})
            return [], [Problem(str(self.file), f"image {image_id}", flaw.field, str(flaw), rows)]
        image = _Image(self, picture, (width, height), orientation, image_id, json.loads(extra))
        if self.column:
            for annotation in job.annotations:
                image.by_column(annotation, self._sentences(annotation))
        else:
            for _, group in groupby(job.annotations, key=lambda one: one[1]):
                image.by_category(list(group))
        return image.records, image.problems

    def _sentences(self, annotation: tuple) -> list[Any]:
        found = json.loads(annotation[5]).get(self.column)
        return found if isinstance(found, list) else [found]


class _Image:
    """Collects the rows and problems of one image."""

    def __init__(
        self, to: CocoConvert, picture: Picture, drawn_wh: tuple[int, int], orientation: int, image_id: Any, extra: dict
    ):
        self.to, self.picture, self.drawn_wh, self.orientation = to, picture, drawn_wh, orientation
        self.image_id, self.extra = image_id, extra
        self.records: list[Record] = []
        self.problems: list[Problem] = []

    def by_column(self, annotation: tuple, sentences: list[Any]) -> None:
        """A row for each sentence of one annotation."""
        one, _, category, *_ = annotation
        try:
            truths = [truth_of(self._mask(annotation), self.orientation)]
        except Flaw as flaw:
            self._problem(f"annotation {one}", flaw, len(sentences))
            return
        for number, sentence in enumerate(sentences):
            try:
                self._add(sentence, category, truths, None, {"ann_id": one, "sentence": number})
            except Flaw as flaw:
                self._problem(f"annotation {one}", Flaw(str(self.to.column), str(flaw)), 1)

    def by_category(self, annotations: list[tuple]) -> None:
        """A row for all objects of one category; crowds are pixels that do not count."""
        _, category_id, category, *_ = annotations[0]
        crowd = np.zeros(self.drawn_wh[::-1], dtype=bool)
        truths = []
        one = annotations[0][0]
        try:
            if category is None:
                raise Flaw("category_id", f"no category has the id {category_id}")
            if category_id in self.extra.get(NOT_EXHAUSTIVE, []):
                raise Flaw(
                    NOT_EXHAUSTIVE, f"objects of {category!r} in this image are not annotated, so no mask is true"
                )
            for annotation in annotations:
                one, is_crowd = annotation[0], annotation[3]
                mask = self._mask(annotation)
                if is_crowd:
                    crowd |= mask
                else:
                    truths.append(truth_of(mask, self.orientation))
            if not truths:
                raise Flaw("iscrowd", f"the image has {category!r} only as a crowd, so there is no object to point at")
            sentence = self.to.sentence.replace("{category}", category.replace("_", " "))  # LVIS: aerosol_can
            ignore = encode_rle(turn_mask(crowd, self.orientation)) if crowd.any() else None
            self._add(sentence, category, truths, ignore, {"category_id": category_id})
        except Flaw as flaw:
            self._problem(f"annotation {one}", flaw, 1)

    def _mask(self, annotation: tuple) -> np.ndarray:
        shape = segmentation_mask(json.loads(annotation[4]), self.drawn_wh)
        for note in shape.notes:
            self._problem(f"annotation {annotation[0]}", Flaw("segmentation", note), 0)
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
        self.problems.append(Problem(str(self.to.file), where, flaw.field, str(flaw), rows))


def _convert(to: CocoConvert, out: Path, strict: bool, workers: int) -> list[Outcome]:
    if not to.images.is_dir():
        raise DataError(f"--images: no folder {to.images}. Unpack the images there")
    if not to.column and "{category}" not in to.sentence:
        raise DataError(f"--sentence is {to.sentence!r}, expected it to hold {{category}}: rows would all ask the same")
    out.parent.mkdir(parents=True, exist_ok=True)
    plan = {"source": stamp(to.file), "to": repr(to)}
    with Workspace(out.parent / f".{out.name}.work", plan) as work:
        keep = [NOT_EXHAUSTIVE, *([to.column] if to.column else [])]
        database = open_index(work.folder / "index.sqlite", instances_of(to.file, keep))
        (total,) = database.execute("SELECT COUNT(DISTINCT image_id) FROM annotations").fetchone()
        outcome = convert(work, out, jobs(database), total, to, strict, workers)
        database.close()
    return [outcome]


def main(
    annotations: Annotated[Path, typer.Option(help="the instances file")],
    images: Annotated[Path, typer.Option(help="folder of the images that it names")],
    out: Annotated[Path, typer.Option(help="the parquet file to write")],
    sentence: Annotated[str, typer.Option(help="the sentence of a category's row")] = "the {category}",
    column: Annotated[str | None, typer.Option(help="field of an annotation that holds its sentence or list")] = None,
    name: Annotated[str, typer.Option(help="the rows' data_source")] = "coco",
    exif: Annotated[Exif, typer.Option(help="which way up images with an EXIF orientation were annotated")] = Exif.auto,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first problem and write nothing")] = False,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: one a core")] = 0,
) -> None:
    """Convert a COCO instances file."""
    to = CocoConvert(annotations, images, out.parent, name, sentence, column, exif)
    report_and_exit(lambda: _convert(to, out, strict, workers))


if __name__ == "__main__":
    typer.run(main)
