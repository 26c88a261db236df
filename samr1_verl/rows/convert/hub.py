"""A Hugging Face data set, from the hub or from disk, converted to rows. Options name its columns.

Objects come from one of three kinds of columns: a mask (an image, or rows of pixels), a segmentation (COCO polygons or
RLE, of one object or a list of objects), or a box. Images inside the data set are copied, byte for byte, to the folder
`images` beside the parquet file. Their name is their digest. The data set is read as a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samr1_verl.geometry.frames import turn_mask
from samr1_verl.geometry.images import ImageError, ImageFile
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.convert.annotations import (
    Picture,
    Truth,
    box_in_image,
    make_record,
    open_picture,
    segmentation_mask,
    truth_of,
)
from samr1_verl.rows.convert.columns import (
    box_xyxy,
    file_of,
    label_image,
    several_boxes,
    several_segmentations,
    split_labels,
)
from samr1_verl.rows.convert.json_files import check_json_file
from samr1_verl.rows.convert.names import Flaw, checked_sentences, short
from samr1_verl.rows.convert.options import BoxFormat, Exif, RunOptions
from samr1_verl.rows.convert.pipeline import Outcome, Problem, Workspace, convert, stamp
from samr1_verl.rows.files import complete
from samr1_verl.rows.record import DataError, Record

if TYPE_CHECKING:
    import datasets  # takes seconds to import, and no worker needs it

MOST_OBJECTS = 1000  # of one example: each has a mask
_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


@dataclass(frozen=True)
class Columns:
    """Names of the columns. One of mask, segmentation and box is given."""

    image: str
    sentence: str
    mask: str | None
    segmentation: str | None
    box: str | None
    category: str | None
    id: str | None

    @property
    def named(self) -> list[str]:
        return [name for name in vars(self).values() if name is not None]


@dataclass(frozen=True)
class HubConvert:
    """Rows and problems of one example, which comes as (number, example).

    `folder` is the parquet file's folder. `images` is the folder that paths in the data set are relative to and may
    not leave; None: the data set's own folder.
    """

    dataset: str
    images: Path | None
    columns: Columns
    box_format: BoxFormat
    ignore_value: int | None
    folder: Path
    data_source: str
    exif: Exif

    @property
    def root(self) -> Path | None:
        """The folder of the files that the data set may name; None where it comes from the hub."""
        place = Path(self.dataset)
        return self.images or (place if place.is_dir() else place.parent if place.is_file() else None)

    def __call__(self, numbered: tuple[int, dict]) -> tuple[list[Record], list[Problem]]:
        number, example = numbered
        sentence = example[self.columns.sentence]
        sentences = sentence if isinstance(sentence, list) else [sentence]
        try:
            checked_sentences(sentence)
            picture = self.picture(example[self.columns.image])
            truths, boxes, ignore, notes = self._objects(example, picture)
        except Flaw as flaw:
            return [], [self._problem(number, flaw.where, flaw.problem, len(sentences))]
        problems = [self._problem(number, "segmentation", note, 0) for note in notes]
        records = []
        for index, text in enumerate(sentences):
            ids = {"example": number, "sentence": index}
            if self.columns.id:
                ids[self.columns.id] = example[self.columns.id]
            category = example[self.columns.category] if self.columns.category else ""
            try:
                records.append(
                    make_record(
                        data_source=self.data_source,
                        sentence=text,
                        picture=picture,
                        folder=self.folder,
                        truths=truths,
                        boxes=boxes,
                        ignore=ignore,
                        category=str(category or ""),
                        source=ids,
                    )
                )
            except Flaw as flaw:
                problems.append(self._problem(number, flaw.where, flaw.problem, 1))
        return records, problems

    def _problem(self, number: int, kind: str, problem: str, rows: int) -> Problem:
        column = getattr(self.columns, kind, None) or kind
        return Problem(self.dataset, f"example {number}", column, problem, rows)

    def picture(self, image: Any) -> Picture:
        """The example's image file: the file that the data set names, else a copy of its bytes in `images`."""
        image = {"path": image, "bytes": None} if isinstance(image, str) else image
        if not isinstance(image, dict) or not (image.get("bytes") or image.get("path")):
            raise Flaw("bad_image", "image", f"found {short(image)}, expected an image or a path")
        if not image.get("bytes"):
            return open_picture(file_of(image["path"], self.root))
        data = image["bytes"]
        try:
            with ImageFile(f"an image of {len(data)} bytes", data).opened() as picture:
                suffix = (picture.format or "image").lower()
        except ImageError as error:
            raise Flaw("unusable_image", "image", f"{error}") from error
        path = self.folder / "images" / f"{hashlib.sha256(data).hexdigest()}.{suffix}"
        if not path.is_file():
            with complete(path) as partial:
                partial.write_bytes(data)
        return open_picture(path)

    def _objects(
        self, example: dict, picture: Picture
    ) -> tuple[list[Truth], list[list[float]], str | None, tuple[str, ...]]:
        """Objects with masks, boxes where there are no masks, pixels that do not count (RLE), and notes."""
        if self.columns.mask:
            labels = label_image(example[self.columns.mask], self.root)
            mask, ignore = split_labels(labels, self.ignore_value)
            turn = picture.turn((labels.shape[1], labels.shape[0]), self.exif)
            return [truth_of(mask, turn)], [], encode_rle(turn_mask(ignore, turn)) if ignore.any() else None, ()
        turn = self.turn(picture)
        if self.columns.segmentation:
            drawn_wh = picture.stored_wh if turn != 1 else picture.size_wh
            segmentations = several_segmentations(example[self.columns.segmentation])
            if len(segmentations) > MOST_OBJECTS:
                raise Flaw(
                    "too_many_objects", "segmentation", f"{len(segmentations)} objects, expected at most {MOST_OBJECTS}"
                )
            shapes = [segmentation_mask(segmentation, drawn_wh) for segmentation in segmentations]
            notes = tuple(chain(*(shape.notes for shape in shapes)))
            return [truth_of(shape.mask, turn) for shape in shapes], [], None, notes
        boxes = [box_xyxy(box, self.box_format) for box in several_boxes(example[str(self.columns.box)])]
        return [], [box_in_image(box, picture, turn) for box in boxes], None, ()

    def turn(self, picture: Picture) -> int:
        """The EXIF orientation that polygons and boxes still need. They come without the size of their image."""
        if self.exif is Exif.auto and picture.orientation != 1:
            raise Flaw(
                "unknown_orientation",
                "orientation",
                f"{picture.path} has the EXIF orientation {picture.orientation}, and nothing tells whether the "
                "annotation was drawn before or after it. Use --exif applied (as viewers show it) or --exif stored",
            )
        return picture.orientation if self.exif is Exif.stored else 1


def open_dataset(place: str, config: str | None, split: str) -> datasets.IterableDataset:
    """The data set as a stream. `place`: a hub id, a folder, a file, or a folder of save_to_disk. Raises DataError."""
    import datasets

    path = Path(place)
    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(place)
            if isinstance(saved, datasets.DatasetDict):
                if split not in saved:
                    raise DataError(
                        "no_such_split", "--split", f"{place} has no split {split!r}, it has: {', '.join(saved)}"
                    )
                saved = saved[split]
            return saved.to_iterable_dataset()
        if path.is_file():
            if path.suffix in (".json", ".jsonl"):
                check_json_file(path)
            if path.suffix not in _BUILDERS:
                raise DataError(
                    "unknown_ending",
                    "--dataset",
                    f"{place} ends in {path.suffix!r}, expected one of {', '.join(_BUILDERS)}",
                )
            return datasets.load_dataset(_BUILDERS[path.suffix], data_files=place, split="train", streaming=True)
        return datasets.load_dataset(place, config, split=split, streaming=True)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("unreadable_dataset", f"--dataset {place}, --split {split}", f"{error}") from error


def source_files(dataset: str) -> list[list[Any]]:
    """The stamps of a data set's files for a Workspace's plan; none for a data set on the hub."""
    place = Path(dataset)
    files = [place] if place.is_file() else sorted(place.rglob("*")) if place.is_dir() else []
    return [stamp(path) for path in files if path.is_file()]


def raw_examples(stream: datasets.IterableDataset, columns: Columns) -> Iterator[dict]:
    """The examples, their images not decoded: bytes or a path. Raises DataError where a column is missing."""
    import datasets

    try:
        yield from _examples(stream, columns)
    except DataError:
        raise
    except (ValueError, TypeError, LookupError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            "unreadable_dataset", "the data set", f"cannot be read ({error}). Correct it, or get it again"
        ) from error


def _examples(stream: datasets.IterableDataset, columns: Columns) -> Iterator[dict]:
    import datasets

    names = stream.column_names or list(next(iter(stream), {}))
    missing = [name for name in columns.named if name not in names]
    if missing:
        raise DataError("no_such_column", "the data set", f"no column {', '.join(missing)}, it has: {', '.join(names)}")
    for name in (columns.image, columns.mask):
        if name and isinstance((stream.features or {}).get(name), datasets.Image):
            stream = stream.cast_column(name, datasets.Image(decode=False))
    yield from stream


def convert_hub(to: HubConvert, config: str | None, split: str, out: Path, run: RunOptions) -> list[Outcome]:
    """Write the rows of a data set's split to the parquet file `out`, which lies in `to.folder`.

    Args:
        config: the data set's configuration; None: its only one.

    Raises:
        DataError: an option or a file cannot be used, there is a problem where `run.strict`, or no row is left.
    """
    chosen = [to.columns.mask, to.columns.segmentation, to.columns.box]
    if sum(name is not None for name in chosen) != 1:
        raise DataError("not_one_option", "--mask, --segmentation and --box", "give exactly one of them")
    stream = open_dataset(to.dataset, config, split)
    out.parent.mkdir(parents=True, exist_ok=True)
    plan = {"to": repr(to), "config": config, "split": split, "files": source_files(to.dataset)}
    total = stream.info.splits[split].num_examples if split in (stream.info.splits or {}) else None
    with Workspace(out.parent / f".{out.name}.work", plan, run.watcher) as work:
        jobs = enumerate(raw_examples(stream, to.columns))
        return [convert(work, out, jobs, total, to, run)]
