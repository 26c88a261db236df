"""Reading of an image file for the segmenter, with a check of its digest and size."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from samr1_verl.geometry.images import ImageError, open_image, sha256_of


def read_image(image: Path, sha256: str, max_pixels: int | None) -> np.ndarray:
    """HxWx3 uint8 RGB in the original frame.

    Args:
        image: path of the file.
        sha256: expected digest of its bytes, hexadecimal.
        max_pixels: maximum number of pixels, checked before the file is decoded; None: Pillow's own limit.

    Raises:
        ImageError: the file is missing, unreadable, too large, or its digest differs from `sha256`.
    """
    if (actual := sha256_of(image)) != sha256:
        raise ImageError(
            f"{image}: its SHA-256 is {actual}, the row says {sha256}. The file changed after the data was "
            "prepared: put the original back, or prepare the data again"
        )
    if max_pixels is not None:
        _check_pixels(image, max_pixels)
    return np.asarray(open_image(image))


def _check_pixels(image: Path, limit: int) -> None:
    with (
        suppress(OSError, Image.DecompressionBombError),
        Image.open(image) as header,
    ):  # reads the header only; open_image raises for other faults
        if header.width * header.height > limit:
            raise ImageError(f"{image}: {header.width}x{header.height} pixels, the limit is {limit}")
