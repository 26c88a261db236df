"""Limits of the work that an image file costs before its pixels: parts that a decoder walks through one by one.

The number of pixels does not bound this work. A progressive JPEG of 0.3 MB with 2,000 scans takes Pillow a minute, and
a TIFF file of 60 MB with 30 million offsets takes 1.5 GB. Photographs stay far below each limit.
"""

from __future__ import annotations

import re
import struct

# As libtiff's own limit for JPEG data in TIFF files. Encoders write about ten.
JPEG_SCANS = 100
# Segments, of which a colour profile or an extended XMP packet takes one for each 64 kB.
JPEG_SEGMENTS = 500
JPEG_JUNK = 65_536  # bytes that are skipped before the first scan
PNG_CHUNKS = 65_536  # those with pixels often hold 8 kB
PNG_OTHER_CHUNKS = 1_000  # chunks without pixels; libpng's own limit
PNG_OTHER_BYTES = 1 << 24
EXIF_BYTES = 1 << 20  # one segment of a JPEG file has 65,536; each value becomes a Python object
TIFF_VALUES = 262_144  # values per field: offsets of 50 megapixels in tiles of 16x16
TIFF_TEXT = 1 << 26  # bytes per field of text or raw bytes
_PNG, _JPEG, _BMP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM"
_JPEG_ALONE = (0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE))  # markers without a length, for Pillow
_JPEG_ANY = re.compile(rb"\xff[\x00-\xff]")
_JPEG_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # coded pixels have 0xFF before 0 and restart markers only
_TIFF_BYTES = (1, 2, 6, 7)  # types of fields that hold bytes or text


def excess_of(content: bytes) -> str | None:
    """The reason why decoding an image file's bytes takes too much work, or None. Reads each part's header at most."""
    if content.startswith(_JPEG):
        return _jpeg_excess(content)
    if content.startswith(_PNG):
        return _png_excess(content)
    if content.startswith(_BMP) and content[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        return "a BMP file with run lengths, which Pillow decodes in Python"
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff_excess(content)
    return None


def _jpeg_excess(content: bytes) -> str | None:
    position, segments, scans, junk, exif = 2, 0, 0, 0, 0
    while (marker := (_JPEG_IN_SCAN if scans else _JPEG_ANY).search(content, position)) is not None:
        kind, segments = marker[0][1], segments + 1
        junk += 0 if scans else marker.start() - position
        scans += kind == 0xDA
        if scans > JPEG_SCANS:
            return f"more than {JPEG_SCANS} scans"
        if segments > JPEG_SEGMENTS or junk > JPEG_JUNK:
            return f"more than {JPEG_SEGMENTS} segments, or {JPEG_JUNK} bytes of no segment"
        if scans and kind == 0xD9:  # the end; a camera may have appended a film
            return None
        if kind == 0xFF:  # fill byte
            position = marker.start() + 1
        elif kind in _JPEG_ALONE:
            position = marker.end()
        else:
            length = max(2, int.from_bytes(content[marker.end() : marker.end() + 2], "big"))
            position = marker.end() + length
            exif += length if kind == 0xE1 and content[marker.end() + 2 : marker.end() + 6] == b"Exif" else 0
            if exif > EXIF_BYTES:
                return f"more than {EXIF_BYTES} bytes of EXIF data"
    return None


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


def _tiff_excess(content: bytes) -> str | None:
    """Fields of the first directory, the only one that is read, that are too long. Faults are left to the decoder."""
    order, big = "<" if content.startswith(b"II") else ">", content[2:4] in (b"+\0", b"\0+")
    head, number, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    try:
        (start,) = struct.unpack_from(order + head, content, 8 if big else 4)
        (fields,) = struct.unpack_from(order + number, content, start)
        start += struct.calcsize(number)
        step = struct.calcsize(order + entry)
        for index in range(min(fields, 65_536)):
            tag, kind, count, _ = struct.unpack_from(order + entry, content, start + index * step)
            limit = TIFF_TEXT if kind in _TIFF_BYTES else TIFF_VALUES
            if count > limit:
                return f"{count} values in its field {tag}, the limit is {limit}"
    except (struct.error, OverflowError):
        return None
    return f"{fields} fields" if fields > 65_536 else None
