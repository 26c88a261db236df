"""Reading of an image file for the segmenter, with a check of its digest and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samr1_verl.geometry.images import ImageError, ImageFile


def read_file(image: Path, sha256: str) -> ImageFile:
    """The file of a row's image.

    Args:
        image: path of the file.
        sha256: expected digest of its bytes, hexadecimal.

    Raises:
        ImageError: the file is missing, unreadable, no regular file, or its digest differs from `sha256`.
        OSError: as `ImageFile.read`.
    """
    file = ImageFile.read(image)
    if file.sha256 != sha256:
        raise ImageError(
            "digest_differs",
            f"{image}",
            f"its SHA-256 is {file.sha256}, the row says {sha256}. The file changed after the data was prepared: put "
            "the original back, or prepare the data again",
        )
    return file


def read_image(image: Path, sha256: str, max_pixels: int | None) -> np.ndarray:
    """HxWx3 uint8 RGB in the original frame.

    Args:
        image, sha256: as for `read_file`.
        max_pixels: maximum number of pixels, checked before the file is decoded; None: Pillow's own limit.

    Raises:
        ImageError: as `read_file`; the image is too large or cannot be decoded.
        OSError: as `ImageFile.read`.
    """
    return np.asarray(read_file(image, sha256).rgb(max_pixels))


def size_of(image: Path, sha256: str) -> tuple[int, int] | None:
    """(H, W) of a row's image in the original frame; None: this process cannot read it, or it is another file."""
    try:
        orientation, (width, height) = read_file(image, sha256).orientation()
    except (ImageError, OSError):  # the service may read it all the same
        return None
    return (width, height) if orientation >= 5 else (height, width)
