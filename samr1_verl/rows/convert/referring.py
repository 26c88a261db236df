"""Referring expressions on COCO images: the part that RefCOCO and gRefCOCO share.

References are added to the database of their instances file and grouped by image. Each sentence becomes a row.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from samr1_verl.rows.convert.annotations import (
    Picture,
    Truth,
    make_record,
    open_picture,
    segmentation_mask,
    truth_of,
)
from samr1_verl.rows.convert.instances import Fill, instances_of, open_index
from samr1_verl.rows.convert.names import Flaw, checked_id, checked_sentences, checked_split, find_image, short
from samr1_verl.rows.convert.options import Exif, RunOptions
from samr1_verl.rows.convert.pipeline import Convert, Outcome, Problem, Workspace, convert, stamp
from samr1_verl.rows.files import complete
from samr1_verl.rows.record import DataError, Record

_TABLES = """
CREATE TABLE refs (id PRIMARY KEY, image_id, split TEXT, annotations TEXT) WITHOUT ROWID;
CREATE TABLE sentences (
    split TEXT, image_id, ref_id, number INTEGER, id, text TEXT, chosen INTEGER DEFAULT 1,
    PRIMARY KEY (split, image_id, ref_id, number)
) WITHOUT ROWID;
CREATE TABLE flaws (record TEXT, field TEXT, problem TEXT, rows INTEGER);
"""
FLAWS = 100
NO_TARGET = [-1]  # gRefCOCO's ann_id of a sentence about nothing in the image


@dataclass(frozen=True)
class Sample:
    """A random sample of the train split: `count` sentences, drawn with `seed`."""

    count: int
    seed: int


@dataclass(frozen=True)
class Files:
    """The files of one data set. `name` becomes the rows' data_source."""

    name: str
    refs: Path
    instances: Path
    images: Path

    def plan(self) -> dict[str, Any]:
        """The part of a Workspace's plan that names the source. Raises DataError where a file or folder is missing."""
        if not self.images.is_dir():
            raise DataError(f"--images: no folder {self.images}. Unpack COCO's train2014 images there")
        return {"refs": stamp(self.refs), "instances": stamp(self.instances), "images": str(self.images.resolve())}


def refs_of(refs: Callable[[], Iterable[Any]], read: Callable[[dict], list]) -> Fill:
    """A function that fills a database with references.

    Args:
        refs: returns the references.
        read: annotation ids of a reference; raises Flaw or KeyError where it cannot be used.
    """

    def fill(database: sqlite3.Connection) -> None:
        database.executescript(_TABLES)
        for index, ref in enumerate(refs()):
            name = f"reference {index}"
            try:
                name = f"ref_id {checked_id(ref['ref_id'], 'ref_id')}"
                key = (checked_split(ref["split"]), checked_id(ref["image_id"], "image_id"), ref["ref_id"])
                ids = json.dumps([checked_id(ann_id, "ann_id") for ann_id in read(ref)])
                sentences = [
                    (*key, number, checked_id(sentence["sent_id"], "sent_id"), json.dumps(_plain(sentence["sent"])))
                    for number, sentence in enumerate(checked_sentences(ref["sentences"]))
                ]
                database.execute("INSERT INTO refs VALUES (?, ?, ?, ?)", (key[2], key[1], key[0], ids))
                database.executemany("INSERT INTO sentences VALUES (?, ?, ?, ?, ?, ?, 1)", sentences)
            except (KeyError, TypeError, ValueError, OverflowError, sqlite3.IntegrityError) as error:
                column, problem = _explain(error)
                rows = len(ref["sentences"]) if isinstance(ref, dict) and isinstance(ref.get("sentences"), list) else 0
                database.execute("INSERT INTO flaws VALUES (?, ?, ?, ?)", (name, column, problem, rows))

    return fill


def _plain(sentence: Any) -> Any:
    """A value that JSON can hold: a list may hold itself in a pickle."""
    if isinstance(sentence, list | dict | tuple | bytes | bytearray):
        raise Flaw("sent", f"found {short(sentence)}, expected text")
    return sentence


def _explain(error: Exception) -> tuple[str, str]:
    if isinstance(error, KeyError):
        return str(error.args[0]), "it is missing"
    if isinstance(error, Flaw):
        return error.field, str(error)
    if isinstance(error, sqlite3.IntegrityError):
        return "ref_id", "another reference has the same"
    return "ref", f"not a reference as its publisher ships them ({error})"


def convert_splits(
    files: Files,
    refs: Fill,
    out: Path,
    splits: Sequence[str],
    sample: Sample | None,
    exif: Exif,
    run: RunOptions,
) -> list[Outcome]:
    """Write OUT/SPLIT.parquet for each of `splits` (empty: all). Of `train`, only the sample where there is one.

    Raises:
        DataError: a file is missing or broken, a split does not exist, or the sample is larger than the split.
    """
    plan = {**files.plan(), "name": files.name, "sample": repr(sample), "exif": exif}
    out.mkdir(parents=True, exist_ok=True)
    with Workspace(out / f".{files.name}.work", plan, run.watcher) as work:
        database = open_index(work.folder / "index.sqlite", instances_of(files.instances), refs)
        chosen = _known_splits(database, files, splits)
        outcomes = []
        for number, split in enumerate(chosen):
            if sample is not None and split == "train":
                _draw(database, files, split, sample, out / f"{split}.sample.json")
            (total,) = database.execute(
                "SELECT COUNT(DISTINCT image_id) FROM sentences WHERE split = ? AND chosen", (split,)
            ).fetchone()
            function: Convert = ReferringConvert(files, split, out, exif)
            jobs = _jobs(database, split, with_flaws=number == 0)
            outcomes.append(convert(work, out / f"{split}.parquet", jobs, total, function, run))
        database.close()
        return outcomes


def _known_splits(database: sqlite3.Connection, files: Files, wanted: Sequence[str]) -> list[str]:
    present = [split for (split,) in database.execute("SELECT DISTINCT split FROM sentences ORDER BY split")]
    unknown = sorted(set(wanted) - set(present))
    if not present:
        flaw = database.execute("SELECT record, field, problem FROM flaws").fetchone()
        found = "usable references; the first: {}, field {!r}: {}".format(*flaw) if flaw else "references"
        raise DataError(f"{files.refs}: holds no {found}. Download it again from the data set's authors")
    if unknown:
        raise DataError(f"{files.refs}: no split {', '.join(unknown)}, it has: {', '.join(present)}. Correct --split")
    return list(dict.fromkeys(wanted)) or present


def _draw(database: sqlite3.Connection, files: Files, split: str, sample: Sample, listing: Path) -> None:
    """Mark the sample's sentences as chosen and list them. The same data set and seed give the same sentences."""
    query = "SELECT image_id, ref_id, number, id FROM sentences WHERE split = ? ORDER BY ref_id, number"
    rows = database.execute(query, (split,)).fetchall()
    if sample.count > len(rows):
        raise DataError(f"--sample {sample.count}: split {split} of {files.refs} has {len(rows)} sentences")
    drawn = np.random.default_rng(sample.seed).choice(len(rows), size=sample.count, replace=False)
    picked = [rows[i] for i in sorted(drawn)]
    database.execute("UPDATE sentences SET chosen = 0 WHERE split = ?", (split,))
    database.executemany(
        "UPDATE sentences SET chosen = 1 WHERE split = ? AND image_id = ? AND ref_id = ? AND number = ?",
        [(split, *row[:3]) for row in picked],
    )
    database.commit()
    ids = [{"ref_id": ref_id, "sent_id": sent_id} for _, ref_id, _, sent_id in picked]
    content = {"dataset": files.name, "split": split, "seed": sample.seed, "sentences": ids}
    with complete(listing) as partial:
        partial.write_text(json.dumps(content) + "\n")


@dataclass(frozen=True)
class ReferringJob:
    """The references of one image. The first jobs hold the references that could not be read, FLAWS each."""

    image: tuple | None  # id, name, width, height
    refs: dict[Any, tuple[list, list]] = field(default_factory=dict)  # id: annotation ids, sentences (id, JSON text)
    annotations: dict[Any, tuple] = field(default_factory=dict)  # id: image id, category, JSON segmentation
    flaws: list[tuple] = field(default_factory=list)


def _jobs(database: sqlite3.Connection, split: str, with_flaws: bool) -> Iterator[ReferringJob]:
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
            "SELECT a.id, a.image_id, c.name, a.segmentation FROM annotations a LEFT JOIN categories c "
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
                raise Flaw("image_id", f"no image has the id {image_id}. Is the instances file of the same data set?")
            picture = open_picture(find_image(self.files.images, name))
            orientation = picture.turn((width, height), self.exif)
        except Flaw as flaw:
            sentences = sum(len(texts) for _, texts in job.refs.values())
            problems.append(Problem(str(self.files.instances), f"image {image_id}", flaw.field, str(flaw), sentences))
            return [], problems
        truths = self._truths(job, orientation, problems)
        missing = Flaw("ann_id", "no annotation has this id")
        records: list[Record] = []
        for ref_id, (ids, texts) in job.refs.items():
            flaws = {ann_id: truth for ann_id in ids if isinstance(truth := truths.get(ann_id, missing), Flaw)}
            if flaws:
                ann_id, first = next(iter(flaws.items()))
                record = f"annotation {ann_id} of ref_id {ref_id}"
                problems.append(Problem(str(self.files.instances), record, first.field, str(first), len(texts)))
                continue
            for sent_id, text in texts:
                try:
                    records.append(self._record(job, picture, truths, ref_id, sent_id, json.loads(text)))
                except Flaw as flaw:
                    where = f"sent_id {sent_id} of ref_id {ref_id}"
                    problems.append(Problem(str(self.files.refs), where, flaw.field, str(flaw), 1))
        return records, problems

    def _truths(self, job: ReferringJob, orientation: int, problems: list[Problem]) -> dict[Any, Truth | Flaw]:
        """The object of each annotation, or its flaw. Parts without a pixel are added to `problems`."""
        assert job.image is not None
        image_id, _, width, height = job.image
        truths: dict[Any, Truth | Flaw] = {}
        for ann_id, (of_image, _, segmentation) in job.annotations.items():
            try:
                if of_image != image_id:
                    raise Flaw("image_id", f"the annotation is of image {of_image}, its reference of image {image_id}")
                shape = segmentation_mask(json.loads(segmentation), (width, height))
                truths[ann_id] = truth_of(shape.mask, orientation)
            except Flaw as flaw:
                truths[ann_id] = flaw
                continue
            where = (str(self.files.instances), f"annotation {ann_id}", "segmentation")
            problems += [Problem(*where, note, 0) for note in shape.notes]
        return truths

    def _record(
        self, job: ReferringJob, picture: Picture, truths: dict[Any, Any], ref_id: Any, sent_id: Any, sentence: Any
    ) -> Record:
        assert job.image is not None
        ids = job.refs[ref_id][0]
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
