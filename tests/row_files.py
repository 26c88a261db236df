"""Small data files with real images and exact masks, for tests that need rows but no drawn scenes."""

from pathlib import Path

import numpy as np
from PIL import Image

from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.record import Record, write_records


def make_record(folder: Path, name: str = "a.png", size_wh: tuple[int, int] = (64, 48), **changes: object) -> Record:
    """A row whose object is a rectangle in the middle of a grey image; writes the image into `folder`."""
    width, height = size_wh
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    Image.fromarray((mask[..., None] * np.array([200, 40, 40]) + 30).astype(np.uint8)).save(folder / name)
    values = {
        "data_source": "test",
        "sentence": "The red rectangle.",
        "image": name,
        "sha256": sha256_of(folder / name),
        "height": height,
        "width": width,
        "masks": [encode_rle(mask)],
        "boxes": [[width // 4, height // 4, width // 2, height // 2]],
        "category": "rectangle",
    }
    return Record.model_validate({**values, **changes})


def write_rows(path: Path, *records: Record) -> Path:
    """The rows as a parquet file, or one default row; images belong in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, records or [make_record(path.parent)])
    return path
