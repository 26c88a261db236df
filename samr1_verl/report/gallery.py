"""The page's data of the samples: every image, row and mask is stored once, at the size of its thumbnail.

Masks are scaled to the thumbnail. Coordinates stay in the original frame, and scores stay as they were logged.
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samr1_verl.geometry.images import ImageError, ImageFile, open_image
from samr1_verl.geometry.masks import decode_rle, encode_rle
from samr1_verl.scoring.sample import Sample, Turn
from samr1_verl.service.wire import WirePrompt

LONG_SIDE = 384  # maximum length of a thumbnail's longer side, in pixels
PIXELS = 100 * LONG_SIDE**2  # maximum number of pixels of all thumbnails: with more than 100 images they are smaller
QUALITY = 80  # of WebP


class Gallery:
    """Collects images, rows and masks in lists, to which samples refer by position.

    Args:
        images: number of different images, for the size of the thumbnails.
        long_side: maximum length of a thumbnail's longer side, in pixels.
    """

    def __init__(self, images: int, long_side: int = LONG_SIDE) -> None:
        self._side = min(long_side, int((PIXELS / max(images, 1)) ** 0.5))
        self._images: dict[str, int] = {}
        self._rows: dict[tuple, int] = {}
        self._names_of_rows: Counter[str] = Counter()
        self._masks: dict[tuple, int] = {}
        self._counts: list[str] = []
        self._names: list[str] = []  # names of scores
        self.images: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.problems: list[str] = []  # messages about images that cannot be shown

    def as_json(self) -> dict[str, Any]:
        """The collected images, rows, masks and names of scores, in JSON values."""
        return {"images": self.images, "rows": self.rows, "masks": self._counts, "names": self._names}

    def step(self, samples: Iterable[Sample]) -> list[dict[str, Any]]:
        """The samples of one step in JSON values. Several samples of the same row are numbered in their order.

        Raises:
            MaskError: a mask does not decode.
        """
        seen: dict[tuple, int] = {}
        entries = []
        for sample in samples:
            key = _identity(sample)
            seen[key] = seen.get(key, -1) + 1
            entries.append(self.sample(sample, seen[key]))
        return entries

    def sample(self, sample: Sample, repeat: int = 0) -> dict[str, Any]:
        """A sample in JSON values.

        Args:
            repeat: number of earlier samples of the same row and step.

        Raises:
            MaskError: a mask does not decode.
        """
        row = self._row(sample, repeat)
        image = self.rows[row]["image"]
        turns = {} if not sample.turns else {"turns": [self._turn(turn, sample, image) for turn in sample.turns]}
        return {
            "row": row,
            "response": sample.response,
            "reason": sample.reason,
            "shapes": _shapes(sample.shapes),
            "mask": self._mask(sample.mask, sample, image),
            "scores": self._scores(sample.scores),
            **turns,
        }

    def _turn(self, turn: Turn, sample: Sample, image: int) -> dict[str, Any]:
        """A turn in JSON values, under the names of a sample's; its mask is None where it says `done`."""
        return {
            "response": turn.text,
            "reason": turn.reason,
            "shapes": _shapes(turn.shapes),
            "mask": None if turn.mask is None else self._mask(turn.mask, sample, image),
        }

    def _scores(self, scores: Mapping[str, float]) -> list[float | None]:
        """The values in the order of the names; None: missing, or not finite, which JSON cannot hold."""
        self._names += [name for name in scores if name not in self._names]
        values = (scores.get(name) for name in self._names)
        return [value if value is not None and math.isfinite(value) else None for value in values]

    def _row(self, sample: Sample, repeat: int) -> int:
        key = (*_identity(sample), repeat)
        if key not in self._rows:
            image = self._image(sample)
            name = f"{sample.data_source}:{sample.index}"
            self._names_of_rows[name] += 1
            if (number := self._names_of_rows[name]) > 1:  # another row with this number, or another answer to it
                name = f"{name}:{number}"
            self._rows[key] = len(self.rows)
            self.rows.append(
                {
                    "key": name,
                    "source": sample.data_source,
                    "category": sample.category,
                    "sentence": sample.sentence,
                    "size": list(sample.size),
                    "image": image,
                    "truth": None if sample.truth is None else self._mask(sample.truth, sample, image),
                    "ignore": None if sample.ignore is None else self._mask(sample.ignore, sample, image),
                }
            )
        return self._rows[key]

    def _image(self, sample: Sample) -> int:
        if sample.sha256 not in self._images:
            height, width = sample.size
            size = _fitted((width, height), self._side)
            source, problem = None, None
            try:
                file = ImageFile.read(sample.image)
                if file.sha256 != sample.sha256:
                    raise ImageError(
                        "image_changed",
                        sample.image,
                        f"the file has changed: SHA-256 {file.sha256}, expected {sample.sha256}",
                    )
                source = _data_url(file.rgb(), size)
            except (ImageError, OSError) as error:
                problem = str(error)
                self.problems.append(problem)
            self._images[sample.sha256] = len(self.images)
            self.images.append({"src": source, "size": list(size), "path": sample.image, "problem": problem})
        return self._images[sample.sha256]

    def _mask(self, counts: str, sample: Sample, image: int) -> int:
        """Position of a mask in the list. `counts`: its RLE at `sample.size`; it is stored at the thumbnail's size."""
        key = (counts, sample.size)
        if key not in self._masks:
            mask = decode_rle(counts, sample.size)
            width, height = self.images[image]["size"]
            if (height, width) != sample.size:
                shares = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
                mask = np.asarray(shares) >= 128
            self._masks[key] = len(self._counts)
            self._counts.append(encode_rle(mask))
        return self._masks[key]


def _identity(sample: Sample) -> tuple:
    return sample.data_source, sample.index, sample.sha256, sample.sentence, sample.truth, sample.ignore


def _shapes(shapes: Iterable[WirePrompt]) -> list[dict[str, Any]]:
    return [
        {
            "box": None if shape.box is None else _rounded(shape.box),
            "points": [_rounded(point) for point in shape.points],
            "labels": list(shape.labels),
        }
        for shape in shapes
    ]


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 2) for value in values]


def data_url(path: str | Path, long_side: int) -> str:
    """A thumbnail of an image file, as WebP in a data URL.

    Args:
        long_side: maximum length of its longer side, in pixels.

    Raises:
        ImageError: the file is missing or unreadable.
    """
    image = open_image(path)
    return _data_url(image, _fitted(image.size, long_side))


def _fitted(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """(W, H) scaled so that the longer side is `long_side`; unchanged where it is shorter already."""
    scale = min(1.0, long_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _data_url(image: Image.Image, size: tuple[int, int]) -> str:
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
