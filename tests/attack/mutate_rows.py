"""Data sets with bytes and values changed: references, instances, annotations, files of rows, masks."""

from __future__ import annotations

import copy
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samr1_verl import Samr1Error
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import MaskError, decode_rle, encode_rle
from samr1_verl.rows.check import Summary, check_files
from samr1_verl.rows.convert.coco import CocoConvert, convert_coco
from samr1_verl.rows.convert.grefcoco import convert_grefcoco
from samr1_verl.rows.convert.options import Exif, RunOptions
from samr1_verl.rows.convert.reasonseg import convert_reasonseg
from samr1_verl.rows.convert.refcoco import convert_refcoco
from samr1_verl.rows.record import Record, write_records

POLYGON = [1.0, 1.0, 9.0, 1.0, 9.0, 7.5]
INSTANCES: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 16, "height": 12}],
    "annotations": [
        {"id": 11, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [POLYGON]},
        {
            "id": 12,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 1,
            "segmentation": {"size": [12, 16], "counts": [5, 187]},
        },
    ],
    "categories": [{"id": 1, "name": "cat"}],
}
REFERENCES = [
    {
        "ref_id": number,
        "image_id": 1,
        "ann_id": 11,
        "split": "train",
        "sentences": [{"sent_id": number, "sent": "the cat", "tokens": ["the", "cat"]}],
    }
    for number in (1, 2)
]
LISA = {"text": ["the cat"], "shapes": [{"label": "target", "points": [[1, 1], [9, 1], [9, 7]]}], "is_sentence": True}
VALUES: list[Any] = [
    *(None, True, 0, -1, 1.5, 1e308, 1 << 63, 10**30, -(1 << 31)),
    *("", "x" * 300, "../x", "a\0b", "\ud800", "train"),
    *([], {}, [[]], [None], {"a": 1}, [1, "a"], [[[1, 2]]], {"size": [1, 1], "counts": "0"}),
]


class Attempt:
    """Converts or checks a mutated data set. Nothing may be written outside `out`."""

    memory = 4 << 30  # bytes of address space: pyarrow's allocator reserves some of it for each thread

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory()
        self._folder = Path(self._home.name)
        self._out = self._folder / "in" / "out"
        for path in ("in/set", "in/images", "in/seg/val"):
            (self._folder / path).mkdir(parents=True)
        self._images = self._folder / "in" / "images"
        Image.new("RGB", (16, 12)).save(self._images / "a.jpg")
        Image.new("RGB", (16, 12)).save(self._folder / "in" / "seg" / "val" / "a.jpg")
        self._rows = self._sound_rows()
        self._kinds: list[Callable[[np.random.Generator], None]] = [
            self._coco,
            self._refcoco,
            self._grefcoco,
            self._reasonseg,
            self._parquet,
            self._mask,
        ]

    def __call__(self, rng: np.random.Generator) -> str:
        kind = self._kinds[rng.integers(len(self._kinds))]
        try:
            kind(rng)
        except Samr1Error:
            return "refused"
        except Exception as error:
            raise AssertionError(f"{kind.__name__}: {type(error).__name__}: {error}") from error
        finally:
            self._nothing_outside()
        return "accepted"

    def _nothing_outside(self) -> None:
        files = {path.name for path in self._folder.rglob("*.parquet") if self._out not in path.parents}
        assert files == {"rows.parquet"}, files

    def _coco(self, rng: np.random.Generator) -> None:
        file = self._folder / "in" / "set" / "instances.json"
        file.write_bytes(changed(rng, INSTANCES, to_json))
        column = "file_name" if rng.random() < 0.1 else None
        to = CocoConvert(file, self._images, self._out, "coco", "the {category}", column, Exif.auto)
        convert_coco(to, self._out / "coco.parquet", RunOptions(workers=1))

    def _refcoco(self, rng: np.random.Generator) -> None:
        folder = self._instances(rng)
        dump = (lambda value: pickle.dumps(value, 0)) if rng.random() < 0.5 else (lambda value: pickle.dumps(value, 2))
        (folder / "refs(unc).p").write_bytes(changed(rng, REFERENCES, dump))
        convert_refcoco(folder, self._images, self._out, "unc", [], None, Exif.auto, RunOptions(workers=1))

    def _grefcoco(self, rng: np.random.Generator) -> None:
        folder = self._instances(rng)
        (folder / "grefs(unc).json").write_bytes(changed(rng, REFERENCES, to_json))
        convert_grefcoco(folder, self._images, self._out, [], None, Exif.auto, RunOptions(workers=1))

    def _instances(self, rng: np.random.Generator) -> Path:
        folder = self._folder / "in" / "set"
        content = changed(rng, INSTANCES, to_json) if rng.random() < 0.2 else to_json(INSTANCES)
        (folder / "instances.json").write_bytes(content)
        return folder

    def _reasonseg(self, rng: np.random.Generator) -> None:
        folder = self._folder / "in" / "seg"
        (folder / "val" / "a.json").write_bytes(changed(rng, LISA, to_json))
        convert_reasonseg(folder, self._out, [], rng.random() < 0.5, RunOptions(workers=1))

    def _sound_rows(self) -> bytes:
        mask = np.zeros((12, 16), dtype=bool)
        mask[2:5, 3:9] = True
        image, path = self._images / "a.jpg", self._images / "rows.parquet"
        record = Record(
            data_source="a",
            sentence="the cat",
            image=str(image),
            sha256=sha256_of(image),
            height=12,
            width=16,
            masks=[encode_rle(mask)],
            boxes=[[3.0, 2.0, 9.0, 5.0]],
            points=[[[4.5, 3.5]]],
        )
        write_records(
            path, [record, record.model_copy(update={"sentence": "it", "masks": [], "boxes": [], "points": []})]
        )
        return path.read_bytes()

    def _parquet(self, rng: np.random.Generator) -> None:
        path = self._images / "rows.parquet"
        path.write_bytes(damaged(rng, self._rows))
        for result in check_files([path], 1):
            assert isinstance(result, Summary) or str(path) in result.text

    def _mask(self, rng: np.random.Generator) -> None:
        counts = "".join(chr(code) for code in rng.integers(44, 116, size=rng.integers(0, 12)))
        try:
            mask = decode_rle(counts, (12, 16))
        except MaskError:
            raise
        assert mask.shape == (12, 16) and mask.dtype == bool


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def changed(rng: np.random.Generator, value: Any, dump: Callable[[Any], bytes]) -> bytes:
    """The file of a value after one to three of its parts, or its bytes, or both were changed."""
    value = copy.deepcopy(value)
    parts = rng.random() < 0.7
    for _ in range(rng.integers(1, 4) if parts else 0):
        change_a_part(rng, value)
    content = dump(value)
    return damaged(rng, content) if not parts or rng.random() < 0.2 else content


def change_a_part(rng: np.random.Generator, value: Any) -> None:
    """Replace, remove or repeat an entry of one of the lists and dictionaries inside `value`."""
    places = [place for place in walk(value) if len(place)]
    place = places[rng.integers(len(places))]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    key, kind = keys[rng.integers(len(keys))], rng.random()
    if kind < 0.7:
        place[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    elif kind < 0.85:
        del place[key]
    elif isinstance(place, list):
        place.extend([place[key]] * int(rng.integers(1, 4)))


def walk(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    here = [value] if isinstance(value, list | dict) else []
    return here + [place for part in inner for place in walk(part)]


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """The bytes after one to three changes: replaced, cut, repeated or inserted."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if len(data) < 4:
            break
        start, length = int(rng.integers(len(data))), int(rng.integers(1, 9))
        kind = rng.integers(4)
        if kind == 0:
            data[start] = int(rng.integers(256))
        elif kind == 1:
            del data[start : start + length]
        elif kind == 2:
            data[start:start] = data[start : start + length] * int(rng.integers(1, 20))
        else:
            data[start:start] = bytes(rng.integers(256, size=length, dtype=np.uint8))
    return bytes(data)
