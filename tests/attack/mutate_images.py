"""Image files of many formats with bytes changed, cut, repeated and exchanged."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from samr1_verl.geometry.images import ImageError, ImageFile
from samr1_verl.service.source import read_image

MAX_PIXELS = 4_000_000
EDGES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
PNG = b"\x89PNG\r\n\x1a\n"


class Attempt:
    """Reads a mutated file as the service does, and its orientation as a converter does."""

    def __init__(self) -> None:
        self._bases = [*accepted_files(), *foreign_files()]
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name, "mutated")

    def __call__(self, rng: np.random.Generator) -> str:
        content = mutated(rng, self._bases)
        self._path.write_bytes(content)
        try:
            pixels = read_image(self._path, sha256(content).hexdigest(), MAX_PIXELS)
            ImageFile.read(self._path).orientation()
        except ImageError as error:
            if str(self._path) not in str(error):
                raise AssertionError(f"the file is not named: {error}") from error
            return "refused"
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels[..., 0].size > MAX_PIXELS:
            raise AssertionError(f"pixels are {pixels.dtype} {pixels.shape}")
        return "accepted"


def mutated(rng: np.random.Generator, bases: list[bytes]) -> bytes:
    """One of the files after one to four changes."""
    content = bytearray(bases[rng.integers(len(bases))])
    for _ in range(rng.integers(1, 5)):
        if len(content) < 8:
            break
        change = CHANGES[rng.integers(len(CHANGES))]
        change(rng, content, bases)
    if content.startswith(PNG) and rng.random() < 0.7:
        _mend_checksums(content)  # without it few changes would pass the first check
    return bytes(content)


def _flip(rng: np.random.Generator, content: bytearray, _: list[bytes]) -> None:
    for _ in range(rng.integers(1, 17)):
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))


def _cut(rng: np.random.Generator, content: bytearray, _: list[bytes]) -> None:
    del content[rng.integers(len(content)) :]


def _field(rng: np.random.Generator, content: bytearray, _: list[bytes]) -> None:
    """Another number in a header: one to four bytes in either order."""
    width = int(rng.choice([1, 2, 4]))
    start = int(rng.integers(min(len(content), 512 if rng.random() < 0.8 else len(content)) - width + 1))
    value = EDGES[rng.integers(len(EDGES))] % (1 << 8 * width)
    content[start : start + width] = value.to_bytes(width, "big" if rng.random() < 0.5 else "little")


def _splice(rng: np.random.Generator, content: bytearray, bases: list[bytes]) -> None:
    """A piece of another file, or of this one, inserted or in place of bytes."""
    other = bytes(content) if rng.random() < 0.5 else bases[rng.integers(len(bases))]
    start, length = int(rng.integers(len(other))), int(rng.integers(1, 257))
    place = int(rng.integers(len(content)))
    content[place : place + (length if rng.random() < 0.5 else 0)] = other[start : start + length]


def _repeat(rng: np.random.Generator, content: bytearray, _: list[bytes]) -> None:
    start, length = int(rng.integers(len(content))), int(rng.integers(1, 65))
    piece = bytes(content[start : start + length])
    content[start:start] = piece * int(rng.integers(1, 1 + min(5000, 200_000 // max(1, len(piece)))))


def _remove(rng: np.random.Generator, content: bytearray, _: list[bytes]) -> None:
    start = int(rng.integers(len(content)))
    del content[start : start + int(rng.integers(1, 65))]


CHANGES = (_flip, _flip, _cut, _field, _field, _field, _splice, _repeat, _remove)


def _mend_checksums(content: bytearray) -> None:
    position = len(PNG)
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        end = position + 8 + length
        if end + 4 > len(content):
            return
        content[end : end + 4] = zlib.crc32(content[position + 4 : end]).to_bytes(4, "big")
        position = end + 4


def accepted_files() -> list[bytes]:
    """Valid files of the accepted formats, with and without metadata, in all modes that data sets have."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8).repeat(2, 0))
    grey16 = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    icc = b"\0" * 128 + b"profile" * 20
    text = PngImagePlugin.PngInfo()
    text.add_text("key", "value" * 50, zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<tiff:Orientation>8</tiff:Orientation>")
    plain = {"exif": exif, "icc_profile": icc}
    palette, alpha, cmyk = rgb.quantize(16), rgb.convert("RGBA"), rgb.convert("CMYK")
    files = [
        *(
            _saved(rgb, "JPEG", progressive=progressive, **more)
            for progressive in (False, True)
            for more in ({}, plain)
        ),
        *(_saved(rgb.convert(mode), "JPEG", comment="text") for mode in ("L", "CMYK")),
        _saved(rgb, "MPO", save_all=True, append_images=[rgb]),
        *(_saved(image, "PNG") for image in (rgb, palette, alpha, grey16, rgb.convert("1"), rgb.convert("LA"))),
        _saved(rgb, "PNG", pnginfo=text, **plain),
        _saved(palette, "PNG", transparency=3, dpi=(72, 72)),
        _saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(9)]),
        *(_saved(image, "WEBP", lossless=lossless, **plain) for image in (rgb, alpha) for lossless in (False, True)),
        _saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(9)]),
        *(_saved(rgb.convert(mode), "BMP") for mode in ("RGB", "L", "1", "P", "RGBA")),
        *(
            _saved(rgb, "TIFF", compression=name)
            for name in (None, "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg")
        ),
        *(_saved(image, "TIFF", **plain) for image in (grey16, cmyk, palette, rgb.convert("1"))),
        _saved(rgb.convert("1"), "TIFF", compression="group4"),
        _saved(rgb, "TIFF", big_tiff=True),
    ]
    return files


def foreign_files() -> list[bytes]:
    """Valid files of formats that Pillow opens and the project does not."""
    rgb = Image.new("RGB", (32, 24), (200, 100, 50))
    names = ("AVIF", "BLP", "DDS", "EPS", "GIF", "ICNS", "ICO", "JPEG2000", "PCX", "PPM", "QOI", "SGI", "TGA")
    modes = {"BLP": "P", "GIF": "P"}
    files = [_saved(rgb.convert(modes.get(name, "RGB")), name) for name in names]
    return [
        *files,
        _saved(rgb.convert("F"), "SPIDER"),
        _saved(rgb.convert("1"), "XBM"),
        _saved(rgb.convert("1"), "MSP"),
    ]


def _saved(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()
