"""Reading of an image file for the segmenter, with a check of its digest and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samr1_verl.geometry.images import ImageError, ImageFile


def read_image(image: Path, sha256: str, max_pixels: int | None) -> np.ndarray:
    """HxWx3 uint8 RGB in the original frame.

    Args:
        image: path of the file.
        sha256: expected digest of its bytes, hexadecimal.
        max_pixels: maximum number of pixels, checked before the file is decoded; None: Pillow's own limit.

    Raises:
        ImageError: the file is missing, unreadable, too large, or its digest differs from `sha256`.
        OSError: as `ImageFile.read`.
    """
    file = ImageFile.read(image)
    if file.sha256 != sha256:
        raise ImageError(
            f"{image}: its SHA-256 is {file.sha256}, the row says {sha256}. The file changed after the data was "
            "prepared: put the original back, or prepare the data again"
        )
    return np.asarray(file.rgb(max_pixels))
