"""RefCOCO-M (moondream/refcoco-m), a data set of the hub, converted to rows.

An example is an image with `samples`. A sample is one object: its `mask` as COCO RLE, and its `sentences`. The form is
that of public code that reads the data set; its publisher has no loader.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samr1_verl.rows.convert.annotations import Truth, make_record, segmentation_mask, truth_of
from samr1_verl.rows.convert.hub import Columns, HubConvert, open_dataset, raw_examples, source_files
from samr1_verl.rows.convert.names import Flaw, checked_sentences, short
from samr1_verl.rows.convert.options import BoxFormat, Exif, RunOptions
from samr1_verl.rows.convert.pipeline import Outcome, Problem, Workspace, convert
from samr1_verl.rows.record import Record

MOST_SAMPLES = 1000  # of one image
_COLUMNS = Columns("image", "samples", None, None, None, None, None)


@dataclass(frozen=True)
class RefcocoMConvert:
    """Rows and problems of one example, which comes as (number, example). `folder` is the parquet file's folder."""

    dataset: str
    folder: Path
    data_source: str
    exif: Exif

    def __call__(self, numbered: tuple[int, dict]) -> tuple[list[Record], list[Problem]]:
        number, example = numbered
        example_name = f"example {number}"
        try:
            samples = _samples(example["samples"])
            hub = HubConvert(
                self.dataset, None, _COLUMNS, BoxFormat.xywh, None, self.folder, self.data_source, self.exif
            )
            picture = hub.picture(example["image"])
            turn = hub.turn(picture)
        except Flaw as flaw:
            return [], [self._problem(example_name, flaw, _sentences_in(example["samples"]))]
        drawn_wh = picture.stored_wh if turn != 1 else picture.size_wh
        records, problems = [], []
        for index, sample in enumerate(samples):
            name = f"{example_name}, samples[{index}]"
            sentences: list[Any] = [None]
            try:
                sentences = checked_sentences(sample.get("sentences"))
                truth = _truth(sample.get("mask"), drawn_wh, turn)
            except Flaw as flaw:
                problems.append(self._problem(name, flaw, len(sentences)))
                continue
            for position, text in enumerate(sentences):
                try:
                    records.append(
                        make_record(
                            data_source=self.data_source,
                            sentence=text,
                            picture=picture,
                            folder=self.folder,
                            truths=[truth],
                            category=str(sample.get("category") or ""),
                            source={
                                "example": number,
                                "image_id": short(example.get("image_id")),
                                "sample": index,
                                "sentence": position,
                            },
                        )
                    )
                except Flaw as flaw:
                    problems.append(self._problem(name, flaw, 1))
        return records, problems

    def _problem(self, record: str, flaw: Flaw, rows: int) -> Problem:
        return Problem(self.dataset, record, flaw.where, flaw.problem, rows)


def _samples(samples: Any) -> list[dict]:
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise Flaw(
            "bad_samples", "samples", f"found {short(samples)}, expected a list of objects with mask and sentences"
        )
    if len(samples) > MOST_SAMPLES:
        raise Flaw("too_many_objects", "samples", f"{len(samples)} objects, expected at most {MOST_SAMPLES}")
    return samples


def _sentences_in(samples: Any) -> int:
    listed = [sample.get("sentences") for sample in samples if isinstance(sample, dict)] if samples else []
    return sum(len(sentences) for sentences in listed if isinstance(sentences, list)) or 1


def _truth(mask: Any, drawn_wh: tuple[int, int], turn: int) -> Truth:
    if not isinstance(mask, dict):
        raise Flaw("mask_not_rle", "mask", f"found {short(mask)}, expected an RLE with size and counts")
    return truth_of(segmentation_mask(mask, drawn_wh).mask, turn)


def convert_refcoco_m(to: RefcocoMConvert, split: str, out: Path, run: RunOptions) -> list[Outcome]:
    """Write the rows of a split to the parquet file `out`, which lies in `to.folder`.

    Raises:
        DataError: the data set cannot be read, there is a problem where `run.strict`, or no row is left.
    """
    stream = open_dataset(to.dataset, None, split)
    out.parent.mkdir(parents=True, exist_ok=True)
    plan = {"to": repr(to), "split": split, "files": source_files(to.dataset)}
    with Workspace(out.parent / f".{out.name}.work", plan, run.watcher) as work:
        return [convert(work, out, enumerate(raw_examples(stream, _COLUMNS)), None, to, run)]
