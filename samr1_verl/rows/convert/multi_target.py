"""MUSE (PixelLM) and MMR (M2SA) converted to rows: questions about an image, each answered by one or several objects.

Both are one JSON list of images. An image has `questions`, and `answers` with a list of objects for each of them. An
object has a `segmentation`: polygons in MUSE, RLE in MMR. The image is `file_name`, or the end of `coco_url`. Sources:
PixelLM's utils/multi_reason_seg_val_dataset.py, MMR's utils/dataset.py, and README.md of MMR.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
from samr1_verl.rows.convert.instances import image_file_name
from samr1_verl.rows.convert.json_files import read_stream
from samr1_verl.rows.convert.names import Flaw, checked_sentences, find_image, short
from samr1_verl.rows.convert.options import Exif, RunOptions
from samr1_verl.rows.convert.pipeline import Outcome, Problem, Workspace, convert, stamp
from samr1_verl.rows.record import DataError, Record

MOST_OBJECTS = 1000  # of an answer: each has a mask


@dataclass(frozen=True)
class MultiTargetConvert:
    """Rows and problems of one image, which comes as (number, entry of the file). `folder` is the parquet file's."""

    file: Path
    images: Path
    folder: Path
    data_source: str
    exif: Exif

    def __call__(self, numbered: tuple[int, Any]) -> tuple[list[Record], list[Problem]]:
        number, entry = numbered
        image = f"[{number}]"
        questions: list[Any] = []
        try:
            questions, answers = _questions(entry)
            picture = open_picture(find_image(self.images, _image_name(entry)))
            drawn_wh = _pixels(entry, "width"), _pixels(entry, "height")
            orientation = picture.turn(drawn_wh, self.exif)
        except Flaw as flaw:
            return [], [self._problem(image, flaw, max(len(questions), 1))]
        records, problems = [], []
        if len(answers) > len(questions):
            text = f"{len(answers)} answers, {len(questions)} questions: the last answers have none"
            problems.append(self._problem(image, Flaw("more_answers_than_questions", "answers", text), 0))
        for index, question in enumerate(questions):
            name = f"{image}, answers[{index}]"
            try:
                answer = answers[index] if index < len(answers) else None
                objects, notes = _objects(answer, drawn_wh, orientation)
                records.append(self._record(entry, picture, question, index, objects))
                problems += [self._problem(name, note, 0) for note in notes]
            except Flaw as flaw:
                problems.append(self._problem(name, flaw, 1))
        return records, problems

    def _record(
        self, entry: dict, picture: Picture, question: Any, index: int, objects: list[tuple[dict, Truth]]
    ) -> Record:
        names = (str(item.get("category_name") or "") for item, _ in objects)
        return make_record(
            data_source=self.data_source,
            sentence=question,
            picture=picture,
            folder=self.folder,
            truths=[truth for _, truth in objects],
            category=", ".join(dict.fromkeys(names)),
            source={
                "image_id": short(entry.get("image_id", entry.get("id"))),
                "question": index,
                "ann_id": ",".join(short(item.get("id")) for item, _ in objects),
            },
        )

    def _problem(self, record: str, flaw: Flaw, rows: int) -> Problem:
        return Problem(str(self.file), record, flaw.where, flaw.problem, rows)


def _questions(entry: Any) -> tuple[list[Any], list[Any]]:
    """The questions of an image and their answers, which may be fewer. Raises Flaw: one of them is no list."""
    if not isinstance(entry, dict):
        raise Flaw("entry_not_object", "entry", f"found {short(entry)}, expected an image with questions and answers")
    questions, answers = entry.get("questions"), entry.get("answers", entry.get("answer"))
    if not isinstance(questions, list):
        raise Flaw("not_a_list", "questions", f"found {short(questions)}, expected a list")
    if not isinstance(answers, list):
        raise Flaw("not_a_list", "answers", f"found {short(answers)}, expected a list")
    return checked_sentences(questions), answers


def _image_name(entry: dict) -> str:
    """The image's path. MUSE's file_name lies in train2014, all others in the folder that their path or URL names."""
    try:
        name = image_file_name(entry)
    except KeyError as error:
        raise Flaw("no_file_name", "file_name", "it is missing, and so is coco_url") from error
    return name if "/" in name else f"train2014/{name}"


def _pixels(entry: dict, field: str) -> int:
    value = entry.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Flaw("bad_pixel_count", field, f"found {short(value)}, expected a number of pixels")
    return value


def _objects(answer: Any, drawn_wh: tuple[int, int], orientation: int) -> tuple[list[tuple[dict, Truth]], list[Flaw]]:
    """The objects of an answer with their masks, and notes about objects and parts without a pixel.

    Raises:
        Flaw: there is no object, none covers a pixel, or one cannot be read.
    """
    if not isinstance(answer, list) or not answer or not all(isinstance(item, dict) for item in answer):
        raise Flaw("no_objects", "answers", f"found {short(answer)}, expected a list with an object at least")
    if len(answer) > MOST_OBJECTS:
        raise Flaw("too_many_objects", "answers", f"{len(answer)} objects, expected at most {MOST_OBJECTS}")
    objects: list[tuple[dict, Truth]] = []
    notes: list[Flaw] = []
    for item in answer:
        try:
            shape = segmentation_mask(item.get("segmentation"), drawn_wh)
        except NoPixel as flaw:
            notes.append(flaw)
            continue
        notes += [Flaw("part_without_pixel", "segmentation", note) for note in shape.notes]
        objects.append((item, truth_of(shape.mask, orientation)))
    if not objects:
        raise notes[0]
    return objects, notes


def convert_multi_target(to: MultiTargetConvert, out: Path, run: RunOptions) -> list[Outcome]:
    """Write the rows to the parquet file `out`, which lies in `to.folder`.

    Raises:
        DataError: an option or a file cannot be used, there is a problem where `run.strict`, or no row is left.
    """
    if not to.images.is_dir():
        raise DataError(
            "no_images", "--images", f"no folder {to.images}. Unpack COCO's images there: train2014, train2017, val2017"
        )
    plan = {"source": stamp(to.file), "to": repr(to)}
    out.parent.mkdir(parents=True, exist_ok=True)

    def jobs() -> Iterator[tuple[int, Any]]:
        yield from enumerate(read_stream(to.file, "item"))

    with Workspace(out.parent / f".{out.name}.work", plan, run.watcher) as work:
        return [convert(work, out, jobs(), None, to, run)]
