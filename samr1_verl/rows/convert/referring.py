"""Referring expressions on COCO images: the part that RefCOCO and gRefCOCO share.

References are added to the database of their instances file and grouped by image. Each sentence becomes a row.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samr1_verl.rows.convert.instances import Fill, instances_of, open_index
from samr1_verl.rows.convert.names import Flaw, checked_id, checked_sentences, checked_split, short
from samr1_verl.rows.convert.options import Exif, RunOptions
from samr1_verl.rows.convert.pipeline import Convert, Outcome, Workspace, convert
from samr1_verl.rows.convert.referring_rows import Files, ReferringConvert, jobs_of
from samr1_verl.rows.files import complete
from samr1_verl.rows.record import DataError

_TABLES = """
CREATE TABLE refs (id PRIMARY KEY, image_id, split TEXT, annotations TEXT) WITHOUT ROWID;
CREATE TABLE sentences (
    split TEXT, image_id, ref_id, number INTEGER, id, text TEXT, chosen INTEGER DEFAULT 1,
    PRIMARY KEY (split, image_id, ref_id, number)
) WITHOUT ROWID;
CREATE TABLE flaws (record TEXT, field TEXT, problem TEXT, rows INTEGER);
"""
NO_TARGET = [-1]  # gRefCOCO's ann_id of a sentence about nothing in the image


@dataclass(frozen=True)
class Sample:
    """A random sample of the train split: `count` sentences, drawn with `seed`."""

    count: int
    seed: int


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
        raise Flaw("sentence_not_text", "sent", f"found {short(sentence)}, expected text")
    return sentence


def _explain(error: Exception) -> tuple[str, str]:
    if isinstance(error, KeyError):
        return str(error.args[0]), "it is missing"
    if isinstance(error, Flaw):
        return error.where, error.problem
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
            jobs = jobs_of(database, split, with_flaws=number == 0)
            outcomes.append(convert(work, out / f"{split}.parquet", jobs, total, function, run))
        database.close()
        return outcomes


def _known_splits(database: sqlite3.Connection, files: Files, wanted: Sequence[str]) -> list[str]:
    present = [split for (split,) in database.execute("SELECT DISTINCT split FROM sentences ORDER BY split")]
    unknown = sorted(set(wanted) - set(present))
    if not present:
        flaw = database.execute("SELECT record, field, problem FROM flaws").fetchone()
        found = "usable references; the first: {}, field {!r}: {}".format(*flaw) if flaw else "references"
        raise DataError(
            "no_references", f"{files.refs}", f"holds no {found}. Download it again from the data set's authors"
        )
    if unknown:
        raise DataError(
            "no_such_split",
            f"{files.refs}",
            f"no split {', '.join(unknown)}, it has: {', '.join(present)}. Correct --split",
        )
    return list(dict.fromkeys(wanted)) or present


def _draw(database: sqlite3.Connection, files: Files, split: str, sample: Sample, listing: Path) -> None:
    """Mark the sample's sentences as chosen and list them. The same data set and seed give the same sentences."""
    query = "SELECT image_id, ref_id, number, id FROM sentences WHERE split = ? ORDER BY ref_id, number"
    rows = database.execute(query, (split,)).fetchall()
    if sample.count > len(rows):
        raise DataError(
            "sample_too_large", f"--sample {sample.count}", f"split {split} of {files.refs} has {len(rows)} sentences"
        )
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
