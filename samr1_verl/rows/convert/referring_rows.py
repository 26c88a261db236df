"""The references of one image become rows: the part of RefCOCO and gRefCOCO that runs in worker processes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from samr1_verl.rows.convert.annotations import (
    NoPixel,
    Picture,
    Truth,
    make_record,
    open_picture,
    segmentation_mask,
    truth_of,
)
from samr1_verl.rows.convert.names import Flaw, find_image
from samr1_verl.rows.convert.options import Exif
from samr1_verl.rows.convert.pipeline import Problem, stamp
from samr1_verl.rows.record import DataError, Record

FLAWS = 100


class Crowd(Flaw):
    """An object marked `iscrowd` of a data set whose own code skips such objects."""


@dataclass(frozen=True)
class Files:
    """The files of one data set. `name` becomes the rows' data_source; `skip_crowds`: no object is an `iscrowd` one."""

    name: str
    refs: Path
    instances: Path
    images: Path
    skip_crowds: bool = False

    def plan(self) -> dict[str, Any]:
        """The part of a Workspace's plan that names the source. Raises DataError where a file or folder is missing."""
        if not self.images.is_dir():
            raise DataError("no_images", "--images", f"no folder {self.images}. Unpack COCO's train2014 images there")
        return {"refs": stamp(self.refs), "instances": stamp(self.instances), "images": str(self.images.resolve())}


@dataclass(frozen=True)
class ReferringJob:
    """The references of one image. The first jobs hold the references that could not be read, FLAWS each."""

    image: tuple | None  # id, name, width, height
    refs: dict[Any, tuple[list, list]] = field(default_factory=dict)  # id: annotation ids, sentences (id, JSON text)
    annotations: dict[Any, tuple] = field(default_factory=dict)  # id: image id, category, crowd, JSON segmentation
    flaws: list[tuple] = field(default_factory=list)


def jobs_of(database: sqlite3.Connection, split: str, with_flaws: bool) -> Iterator[ReferringJob]:
    flaws = database.execute("SELECT * FROM flaws")
    while with_flaws and (listed := flaws.fetchmany(FLAWS)):
        yield ReferringJob(None, flaws=listed)
    rows = database.execute(
        "SELECT s.image_id, s.ref_id, r.annotations, s.id, s.text FROM sentences s JOIN refs r ON r.id = s.ref_id "
        "WHERE s.split = ? AND s.chosen ORDER BY s.image_id, s.ref_id, s.number",
        (split,),
    )
    for image_id, group in groupby(rows, key=lambda row: row[0]):
        refs: dict[Any, tuple[list, list]] = {}
        for _, ref_id, ids, sent_id, text in group:
            refs.setdefault(ref_id, (json.loads(ids), []))[1].append((sent_id, text))
        image = database.execute("SELECT id, name, width, height FROM images WHERE id = ?", (image_id,)).fetchone()
        wanted = {ann_id for ids, _ in refs.values() for ann_id in ids}
        annotations = database.execute(
            "SELECT a.id, a.image_id, c.name, a.crowd, a.segmentation FROM annotations a LEFT JOIN categories c "
            f"ON c.id = a.category_id WHERE a.id IN ({', '.join('?' * len(wanted))})",
            list(wanted),
        )
        by_id = {ann_id: tuple(values) for ann_id, *values in annotations}
        yield ReferringJob(image or (image_id, None, 0, 0), refs, by_id)


@dataclass(frozen=True)
class ReferringConvert:
    """Rows and problems of one image's references."""

    files: Files
    split: str
    folder: Path
    exif: Exif

    def __call__(self, job: ReferringJob) -> tuple[list[Record], list[Problem]]:
        problems = [Problem(str(self.files.refs), *flaw) for flaw in job.flaws]
        if job.image is None:
            return [], problems
        image_id, name, width, height = job.image
        try:
            if name is None:
                raise Flaw(
                    "no_such_image",
                    "image_id",
                    f"no image has the id {image_id}. Is the instances file of the same data set?",
                )
            picture = open_picture(find_image(self.files.images, name))
            orientation = picture.turn((width, height), self.exif)
        except Flaw as flaw:
            sentences = sum(len(texts) for _, texts in job.refs.values())
            where = f"image {image_id}"
            problems.append(Problem(str(self.files.instances), where, flaw.where, flaw.problem, sentences))
            return [], problems
        truths = self._truths(job, orientation, problems)
        records: list[Record] = []
        for ref_id, (ids, texts) in job.refs.items():
            kept = self._kept(ids, truths, f"ref_id {ref_id}", len(texts), problems)
            if kept is None:
                continue
            for sent_id, text in texts:
                try:
                    records.append(self._record(job, picture, truths, kept, ref_id, sent_id, json.loads(text)))
                except Flaw as flaw:
                    where = f"sent_id {sent_id} of ref_id {ref_id}"
                    problems.append(Problem(str(self.files.refs), where, flaw.where, flaw.problem, 1))
        return records, problems

    def _kept(
        self, ids: list, truths: dict[Any, Truth | Flaw], ref: str, rows: int, problems: list[Problem]
    ) -> list | None:
        """The ids of a reference's objects; None where its rows are left out, which `problems` then says.

        A crowd and an object without a pixel are left out of several objects, as the data set's own code does.
        """
        missing = Flaw("no_such_annotation", "ann_id", "no annotation has this id")
        flaws = {ann_id: truth for ann_id in ids if isinstance(truth := truths.get(ann_id, missing), Flaw)}
        kept = [ann_id for ann_id in ids if ann_id not in flaws]
        fatal = {ann_id: flaw for ann_id, flaw in flaws.items() if not isinstance(flaw, Crowd | NoPixel)}
        if fatal or (flaws and not kept):
            ann_id, first = next(iter((fatal or flaws).items()))
            record = f"annotation {ann_id} of {ref}"
            problems.append(Problem(str(self.files.instances), record, first.where, first.problem, rows))
            return None
        for ann_id, flaw in flaws.items():
            text = f"{flaw.problem}. The row has the reference's other objects"
            problems.append(Problem(str(self.files.instances), f"annotation {ann_id} of {ref}", flaw.where, text, 0))
        return kept

    def _truths(self, job: ReferringJob, orientation: int, problems: list[Problem]) -> dict[Any, Truth | Flaw]:
        """The object of each annotation, or its flaw. Parts without a pixel are added to `problems`."""
        assert job.image is not None
        image_id, _, width, height = job.image
        truths: dict[Any, Truth | Flaw] = {}
        for ann_id, (of_image, _, crowd, segmentation) in job.annotations.items():
            try:
                if crowd and self.files.skip_crowds:
                    raise Crowd("crowd_skipped", "iscrowd", "it is a crowd, and the data set's own code skips crowds")
                if of_image != image_id:
                    raise Flaw(
                        "other_image", "image_id", f"the annotation is of image {of_image}, its reference of {image_id}"
                    )
                shape = segmentation_mask(json.loads(segmentation), (width, height))
                truths[ann_id] = truth_of(shape.mask, orientation)
            except Flaw as flaw:
                truths[ann_id] = flaw
                continue
            where = (str(self.files.instances), f"annotation {ann_id}", "segmentation")
            problems += [Problem(*where, note, 0) for note in shape.notes]
        return truths

    def _record(
        self,
        job: ReferringJob,
        picture: Picture,
        truths: dict[Any, Any],
        ids: list,
        ref_id: Any,
        sent_id: Any,
        sentence: Any,
    ) -> Record:
        assert job.image is not None
        return make_record(
            data_source=self.files.name,
            sentence=sentence,
            picture=picture,
            folder=self.folder,
            truths=[truths[ann_id] for ann_id in ids],
            category=", ".join(dict.fromkeys(job.annotations[ann_id][1] or "" for ann_id in ids)),
            source={
                "split": self.split,
                "image_id": job.image[0],
                "ref_id": ref_id,
                "sent_id": sent_id,
                "ann_id": ",".join(map(str, ids)),
            },
        )
