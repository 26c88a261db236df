"""Reading of image files in the original frame, and their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from samr1_verl import Samr1Error


class ImageError(Samr1Error, ValueError):
    """An image file that is missing, is no image, or is not the file that the row was made from."""


ORIENTATION = 0x0112  # EXIF tag; 1: as stored, 5 to 8: width and height are swapped
# Pillow's PNG and TIFF readers raise SyntaxError and ValueError for broken chunks and tags.
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@contextmanager
def _as_image_error(path: str | Path) -> Iterator[None]:
    """Turn all errors of reading an image into an ImageError that names the file."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(
            f"{path}: no such image. Row images are given relative to their parquet file or as absolute paths. "
            "Prepare the data again where the images are, or move them to this path"
        ) from error
    except _UNREADABLE as error:
        raise ImageError(
            f"{path}: unreadable as an image ({error}). Replace the file, and prepare its rows again"
        ) from error


def open_image(path: str | Path) -> Image.Image:
    """Open an image as RGB, 8 bits per channel, with its EXIF orientation applied: the original frame.

    Palettes, grey levels and CMYK are converted, transparency is dropped, and 16 bits become 8.

    Raises:
        ImageError: the file is missing, cannot be decoded completely, or has values that are neither 8 nor 16 bits.
    """
    with _as_image_error(path), Image.open(path) as image:
        ImageOps.exif_transpose(image, in_place=True)  # in_place: no copy of images that need no rotation
        return _eight_bits(image, path).convert("RGB")


def orientation_of(path: str | Path) -> tuple[int, tuple[int, int]]:
    """EXIF orientation of an image file, 1 to 8, and its (W, H) before that orientation is applied.

    Raises:
        ImageError: the file is missing or unreadable as an image.
    """
    with _as_image_error(path), Image.open(path) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
        return orientation if 1 < orientation <= 8 else 1, image.size


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits, as in a row. Raises ImageError where the file is missing."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such image. Prepare the data again where the images are") from error
    return digest.hexdigest()


def _eight_bits(image: Image.Image, path: str | Path) -> Image.Image:
    """A 16-bit grey image as 8 bits; Pillow's own conversion would make all values above 255 white."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{path}: holds values from {values.min()} to {values.max()} (mode {image.mode}), expected 8 or 16 bits "
            "per channel. Save it as an 8-bit image and prepare the data again"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))
