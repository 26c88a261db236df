"""An image file as the segmenter takes it, held against what a request says of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from samr1_verl.geometry.images import ImageError, open_image, sha256_of


def read_image(image: Path, sha256: str, max_pixels: int | None) -> np.ndarray:
    """HxWx3 uint8 RGB in the original frame.

    Args:
        image: the file.
        sha256: of its bytes, hexadecimal.
        max_pixels: an image with more is refused before it is decoded; None: Pillow's own limit.

    Raises:
        ImageError: the file is missing, unreadable, too large, or not the one that the digest describes.
    """
    if (found := sha256_of(image)) != sha256:
        raise ImageError(
            f"{image}: its SHA-256 is {found}, the row says {sha256}. The file changed after the data was "
            "prepared: put the original back, or prepare the data again"
        )
    if max_pixels is not None:
        _check_pixels(image, max_pixels)
    return np.asarray(open_image(image))


def _check_pixels(image: Path, limit: int) -> None:
    with (
        suppress(OSError, Image.DecompressionBombError),
        Image.open(image) as header,
    ):  # reads no pixel; open_image says the rest
        if header.width * header.height > limit:
            raise ImageError(f"{image}: {header.width}x{header.height} pixels, the limit is {limit}")
