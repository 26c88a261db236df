"""Limits of the work that an image file costs before its pixels: parts that a decoder walks through one by one.

The number of pixels does not bound this work. A progressive JPEG of 0.3 MB with 2,000 scans takes Pillow a minute, and
a TIFF file of 60 MB with 30 million offsets takes 1.5 GB. Photographs stay far below each limit.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

# As libtiff's own limit for JPEG data in TIFF files. Encoders write about ten.
JPEG_SCANS = 100
# Segments, of which a colour profile or an extended XMP packet takes one for each 64 kB.
JPEG_SEGMENTS = 500
JPEG_JUNK = 65_536  # bytes that are skipped before the first scan
PNG_CHUNKS = 65_536  # those with pixels often hold 8 kB
PNG_OTHER_CHUNKS = 1_000  # chunks without pixels; libpng's own limit
PNG_OTHER_BYTES = 1 << 24
EXIF_BYTES = 1 << 20  # one segment of a JPEG file has 65,536
EXIF_VALUES = 1 << 24  # bytes of all values together, each of which becomes a Python object
TIFF_VALUES = 262_144  # values per field: offsets of 50 megapixels in tiles of 16x16
TIFF_FIELDS = 65_535
TIFF_BYTES = 1 << 26  # bytes of all fields together
_PNG, _JPEG, _BMP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM"
_JPEG_ALONE = (0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE))  # markers without a length, for Pillow
_JPEG_ANY = re.compile(rb"\xff[\x00-\xff]")
_JPEG_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # coded pixels have 0xFF before 0 and restart markers only
_TIFF_TEXT = (1, 2, 6, 7)  # types of fields that hold bytes or text
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # bytes by type


def excess_of(content: bytes) -> str | None:
    """The reason why decoding an image file's bytes takes too much work, or None. Reads each part's header at most."""
    if content.startswith(_JPEG):
        return _jpeg_excess(content)
    if content.startswith(_PNG):
        return _png_excess(content)
    if content.startswith(_BMP) and content[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        return "a BMP file with run lengths, which Pillow decodes in Python"
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return directory_excess(content, TIFF_BYTES)
    return None


def exif_excess(info: Mapping[Any, Any]) -> str | None:
    """The reason why the EXIF data in a Pillow image's `info`, not parsed yet, takes too much memory, or None."""
    exif = info.get("exif", b"")
    if not exif and (text := info.get("Raw profile type exif")):  # ImageMagick's form, in PNG files
        exif = bytes.fromhex("".join(text.split("\n")[3:]))
    if len(exif) > EXIF_BYTES:
        return f"more than {EXIF_BYTES} bytes of EXIF data"
    return directory_excess(exif.removeprefix(b"Exif\0\0"), EXIF_VALUES)


def _jpeg_excess(content: bytes) -> str | None:
    position, segments, scans, junk, exif = 2, 0, 0, 0, b""
    while (marker := (_JPEG_IN_SCAN if scans else _JPEG_ANY).search(content, position)) is not None:
        kind, segments = marker[0][1], segments + 1
        junk += 0 if scans else marker.start() - position
        scans += kind == 0xDA
        if scans > JPEG_SCANS:
            return f"more than {JPEG_SCANS} scans"
        if segments > JPEG_SEGMENTS or junk > JPEG_JUNK:
            return f"more than {JPEG_SEGMENTS} segments, or {JPEG_JUNK} bytes of no segment"
        if scans and kind == 0xD9:  # the end; a camera may have appended a film
            break
        if kind == 0xFF:  # fill byte
            position = marker.start() + 1
        elif kind in _JPEG_ALONE:
            position = marker.end()
        else:
            position = marker.end() + max(2, int.from_bytes(content[marker.end() : marker.end() + 2], "big"))
            data = content[marker.end() + 2 : position] if kind in (0xE1, 0xE2) else b""
            if data.startswith(b"MPF\0") and (excess := directory_excess(data[4:], EXIF_VALUES)) is not None:
                return excess
            exif += data[6:] if data.startswith(b"Exif\0\0") else b""  # Pillow joins the segments
            if len(exif) > EXIF_BYTES:
                return f"more than {EXIF_BYTES} bytes of EXIF data"
    return directory_excess(exif, EXIF_VALUES)


def _png_excess(content: bytes) -> str | None:
    position, chunks, others, size = len(_PNG), 0, 0, 0
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        chunks += 1
        if kind != b"IDAT":
            others, size = others + 1, size + length
        if chunks > PNG_CHUNKS or others > PNG_OTHER_CHUNKS or size > PNG_OTHER_BYTES:
            return f"more than {PNG_CHUNKS} chunks, or {PNG_OTHER_CHUNKS} or {PNG_OTHER_BYTES} bytes without pixels"
        position += 12 + length
    return None


def directory_excess(tiff: bytes, limit: int) -> str | None:
    """The reason why the first directory of a TIFF file, or of EXIF data, takes too much memory, or None.

    `limit` is the maximum number of bytes of all values together.

    Values may share their bytes, so a file of 1 MB can hold 60 GB of them. Faults are left to the decoder: photographs
    with single damaged values are common.
    """
    order, big = "<" if tiff.startswith(b"II") else ">", tiff[2:4] in (b"+\0", b"\0+")
    head, number, entry = ("Q", "Q", "HHQQ") if big else ("I", "H", "HHII")
    total, inside = 0, 8 if big else 4  # bytes of a value that stands in its entry
    try:
        (start,) = struct.unpack_from(order + head, tiff, 8 if big else 4)
        (fields,) = struct.unpack_from(order + number, tiff, start)
        start, step = start + struct.calcsize(order + number), struct.calcsize(order + entry)
        for index in range(min(fields, TIFF_FIELDS)):
            tag, kind, count, offset = struct.unpack_from(order + entry, tiff, start + index * step)
            size, present = count * _TIFF_SIZES.get(kind, 0), max(0, len(tiff) - offset)
            if size <= inside:
                continue
            total += min(size, present)
            if total > limit:
                return f"more than {limit} bytes of values in its directory"
            if size <= present and kind not in _TIFF_TEXT and count > TIFF_VALUES:
                return f"{count} values in its field {tag}, the limit is {TIFF_VALUES}"
    except (struct.error, OverflowError):
        return None
    return f"{fields} fields, the limit is {TIFF_FIELDS}" if fields > TIFF_FIELDS else None
