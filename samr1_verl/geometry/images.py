"""Reading of image files in the original frame, and their digests. Every image file is opened here."""

from __future__ import annotations

import errno
import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from samr1_verl import Samr1Error
from samr1_verl.geometry.files import open_regular, read_regular
from samr1_verl.geometry.image_work import excess_of, exif_excess

# Pillow knows forty formats more. One of them, PostScript, is a program that another program executes.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_BYTES = 1 << 29  # of an image file: 16 bits, four channels and 64 megapixels without compression
ORIENTATION = 0x0112  # EXIF tag; 1: as stored, 5 to 8: width and height are swapped
# Faults of the machine, which may pass, and not of the file.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)

# Pillow warns of each damaged EXIF value. A file of 1 MB would write 60,000 lines, and Python keeps each text that it
# has shown. Faults that matter are exceptions.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(Samr1Error, ValueError):
    """An image file that is missing, is no image, or is not the file that the row was made from."""


@contextmanager
def _as_image_error(path: str | Path) -> Iterator[None]:
    """Turn all errors of reading an image into an ImageError that names the file."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(
            "no_such_image",
            f"{path}",
            "no such image. Row images are given relative to their parquet file or as absolute paths. Prepare the data "
            "again where the images are, or move them to this path",
        ) from error
    # Pillow documents no base class of its errors: broken files raised SyntaxError, ValueError, struct.error,
    # IndexError, OverflowError, MemoryError and zlib.error.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _PASSING:
            raise
        reason = f"it is none of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ImageError(
            "unreadable_image",
            f"{path}",
            f"unreadable as an image ({reason or type(error).__name__}). Replace the file, and prepare its rows again",
        ) from error


@dataclass(frozen=True)
class ImageFile:
    """The bytes of an image file. They are read once, so digest, size and pixels belong together.

    Args:
        path: name of the file, for messages.
        content: its bytes.
    """

    path: str | Path
    content: bytes

    @classmethod
    def read(cls, path: str | Path) -> ImageFile:
        """Read a regular file of at most MAX_BYTES.

        Raises:
            ImageError: the file is missing, not readable, no regular file, or too large.
            OSError: this process has too many open files, or another fault of the machine that may pass.
        """
        with _as_image_error(path):
            return cls(path, read_regular(path, MAX_BYTES))

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the bytes, 64 hexadecimal digits, as in a row."""
        return hashlib.sha256(self.content).hexdigest()

    @contextmanager
    def opened(self, max_pixels: int | None = None) -> Iterator[Image.Image]:
        """Pillow's image of the file, with its header read and its pixels as stored, for the length of the block.

        Args:
            max_pixels: maximum number of pixels; None: Pillow's own limit.

        Raises:
            ImageError: it is none of FORMATS, has too many pixels or parts, or the block fails.
        """
        with _as_image_error(self.path):
            if (excess := excess_of(self.content)) is not None:
                raise ValueError(excess)
            with Image.open(io.BytesIO(self.content), formats=FORMATS) as image:
                if (excess := exif_excess(image.info)) is not None:
                    raise ValueError(excess)
                if max_pixels is not None and image.width * image.height > max_pixels:
                    raise ImageError(
                        "too_large", f"{self.path}", f"{image.width}x{image.height} pixels, the limit is {max_pixels}"
                    )
                yield image

    def rgb(self, max_pixels: int | None = None) -> Image.Image:
        """The image as RGB, 8 bits per channel, with its EXIF orientation applied: the original frame.

        Palettes, grey levels and CMYK are converted, transparency is dropped, and 16 bits become 8.

        Raises:
            ImageError: as `opened`; it cannot be decoded completely, or has values that are neither 8 nor 16 bits.
        """
        with self.opened(max_pixels) as image:
            ImageOps.exif_transpose(image, in_place=True)  # in_place: no copy of images that need no rotation
            return _eight_bits(image, self.path).convert("RGB")

    def orientation(self) -> tuple[int, tuple[int, int]]:
        """EXIF orientation, 1 to 8, and (W, H) before that orientation is applied. Raises ImageError as `opened`."""
        with self.opened() as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            return orientation if 1 < orientation <= 8 else 1, image.size


def open_image(path: str | Path) -> Image.Image:
    """The image of a file as `ImageFile.rgb`. Raises ImageError and OSError as `ImageFile.read` and `ImageFile.rgb`."""
    return ImageFile.read(path).rgb()


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a regular file of any size, 64 hexadecimal digits.

    Raises:
        ImageError: the file is missing, not readable, or no regular file.
        OSError: a fault of the machine that may pass.
    """
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except FileNotFoundError as error:
        raise ImageError(
            "no_such_image", f"{path}", "no such image. Prepare the data again where the images are"
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _PASSING:
            raise
        raise ImageError("unreadable_file", f"{path}", f"unreadable ({error})") from error
    return digest.hexdigest()


def _eight_bits(image: Image.Image, path: str | Path) -> Image.Image:
    """A 16-bit grey image as 8 bits; Pillow's own conversion would make all values above 255 white."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(
            "wrong_bit_depth",
            f"{path}",
            f"holds values from {values.min()} to {values.max()} (mode {image.mode}), expected 8 or 16 bits per "
            "channel. Save it as an 8-bit image and prepare the data again",
        )
    return Image.fromarray((values >> 8).astype(np.uint8))
