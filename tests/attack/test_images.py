"""Hostile image files: each is refused with its name, at once, without more memory than an image takes."""

from __future__ import annotations

import errno
import io
import os
import select
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from samr1_verl.geometry import images
from samr1_verl.geometry.images import FORMATS, ImageError, ImageFile, open_image, sha256_of
from samr1_verl.segmenters import Prompt, SegmenterError
from samr1_verl.service.source import read_image
from tests.attack import mutations
from tests.attack.mutate_images import accepted_files, foreign_files
from tests.attack.mutations import run
from tests.errors import refused
from tests.service.fake import BoxSegmenter, image_file
from tests.service.servers import environment
from tests.waiting import GUARD_S, wait_until

READER = """
import sys
from samr1_verl.geometry.images import ImageFile
print(ImageFile.read(sys.argv[1]).rgb().size)
"""


BOX = Prompt((2, 1, 8, 5))


@pytest.mark.slow
def test_500_mutated_files_are_read_or_refused():
    report = run("tests.attack.mutate_images", 500, seed=0)
    assert report.escapes == []
    assert report.outcomes["accepted"] > 50 and report.outcomes["refused"] > 200
    assert report.peak < 400e6


@pytest.mark.slow
def test_the_count_of_mutations_sees_exceptions_crashes_and_hangs(tmp_path, monkeypatch):
    hangs, waits = tmp_path / "hangs", []

    def select_until_it_hangs(files, _, __, seconds):
        waits.append(seconds)
        wait_until(lambda: select.select(files, [], [], 0)[0] or hangs.exists())
        ready = select.select(files, [], [], 0)
        if not ready[0]:
            hangs.unlink()
        return ready

    monkeypatch.setenv("HANGS", str(hangs))
    monkeypatch.setattr(mutations, "select", SimpleNamespace(select=select_until_it_hangs))
    report = run("tests.attack.mutate_badly", 8, seed=0, seconds=3)
    assert set(waits) == {3, 63}, "the first answer of a process waits for its imports"
    assert report.outcomes == {"accepted": 4, "refused": 1, "escaped": 3}
    assert report.escapes == [
        "input 2: KeyError: 'second'",
        "input 4: the process ended with -6",
        "input 6: no answer in 3 s",
    ]


@pytest.fixture(params=["fifo", "device", "folder", "socket", "loop", "long", "null", "inside"])
def no_file(request, tmp_path: Path) -> str:
    path = tmp_path / request.param
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    elif request.param == "loop":
        path.symlink_to(path)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    elif request.param == "inside":  # a file where a folder should be
        (tmp_path / "file").write_bytes(b"")
        return str(tmp_path / "file" / "a.png")
    return {"long": str(tmp_path / ("x" * 300)), "null": f"{tmp_path}/a\0.png"}.get(request.param, str(path))


def test_what_is_no_regular_file_is_refused_without_waiting(no_file):
    for read in (open_image, sha256_of, ImageFile.read, lambda path: read_image(path, "0" * 64, None)):
        with pytest.raises(ImageError) as caught:
            read(no_file)
        assert no_file in str(caught.value)


def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    path, _ = image_file(tmp_path, 7)
    path.chmod(0)
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)  # root reads everything
    try:
        for read, code in ((open_image, "unreadable_image"), (sha256_of, "unreadable_file")):
            with refused(ImageError, code, path, "Permission denied"):
                read(path)
    finally:
        os.seteuid(own)


def test_a_file_beyond_the_limit_of_bytes_is_refused_unread(tmp_path):
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(1 << 40)  # takes no space
    with refused(ImageError, "unreadable_image", tmp_path / "large.png", 1 << 40, "limit is 536870912"):
        open_image(tmp_path / "large.png")


@pytest.mark.parametrize("content", foreign_files(), ids=lambda content: repr(content[:8]))
def test_other_formats_are_refused_before_their_reader_runs(content, tmp_path, monkeypatch):
    def executed(*_):
        raise AssertionError("Ghostscript")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", executed)
    with Image.open(io.BytesIO(content)) as image:  # Pillow itself opens it
        assert image.format not in (*FORMATS, "MPO")
    (tmp_path / "a.png").write_bytes(content)
    with refused(ImageError, "unreadable_image", tmp_path / "a.png", "none of JPEG, PNG, WEBP, BMP, TIFF"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("content", accepted_files(), ids=range(len(accepted_files())))
def test_the_formats_of_data_sets_are_read_as_pillow_reads_them(content):
    with Image.open(io.BytesIO(content)) as image:
        turned = ImageOps.exif_transpose(image)
        expected = turned.convert("RGB") if not turned.mode.startswith("I") else None
    found = ImageFile("a", content).rgb()
    assert found.mode == "RGB" and found.size == turned.size
    assert expected is None or found.tobytes() == expected.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before: bytes = b"", pixels: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0))
    pixels = pixels or chunk(b"IDAT", zlib.compress(b"\0" * 14))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + chunk(b"IEND", b"")


def jpeg(before: bytes = b"", scans: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (64, 64)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:2] + before + content[2:-2] + last * scans + content[-2:]


def tiff(field: int, kind: int, count: int, rest: bytes = b"") -> bytes:
    fields = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: 8, 279: 64}
    entries = [(tag, 3, 1, value) for tag, value in fields.items() if tag != field] + [(field, kind, count, 200)]
    directory = b"".join(struct.pack("<HHIHH", *entry, 0) for entry in sorted(entries))
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory).ljust(200, b"\0") + rest


def webp_with_exif(size: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", exif=b"Exif\0\0" + b"\0" * size)
    return buffer.getvalue()


def bmp_with_runs() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 8, 1, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 2000, 0, 0, 54 + 1024) + header + b"\0" * 1024 + b"\1\0" * 4096


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (jpeg(scans=200), ["100 scans"]),
        (jpeg(b"\xff\xe1\0\x02" * 3000), ["500 segments"]),
        (jpeg(b"\xff\xff" * 3000), ["500 segments"]),
        (jpeg(b"\xff\x00" * 3000), ["500 segments"]),
        (jpeg((b"\xff\xe1\xff\xffExif\0\0" + b"\0" * 65527) * 20), ["1048576 bytes", "EXIF"]),
        (webp_with_exif(2_000_000), ["1048576 bytes", "EXIF"]),
        (png(chunk(b"eXIf", b"\0" * 20_000_000)), ["16777216 bytes", "pixels"]),
        (jpeg(b"\xff\xd9" + b"\0" * 70_000), ["65536 bytes", "segment"]),
        (png(chunk(b"tEXt", b"a\0b") * 2000), ["1000 or 16777216 bytes", "pixels"]),
        (png(chunk(b"abCd", b"") * 2000), ["1000 or 16777216 bytes", "pixels"]),
        (png(pixels=chunk(b"IDAT", b"") * 70_000), ["65536 chunks"]),
        (png(chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 80_000_000))), ["ecompressed"]),
        (png(chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 80_000_000))), ["ecompressed"]),
        (tiff(273, 3, 300_000, b"\0" * 600_000), ["300000 values", "field 273"]),
        (tiff(273, 3, 2**32 - 1), []),
        (bmp_with_runs(), ["run lengths"]),
        (b"\xff\xd8\xff", ["none of"]),
        (b"", ["none of"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_files_that_cost_more_than_their_pixels_are_refused(content, names, tmp_path):
    (tmp_path / "bomb").write_bytes(content)
    with refused(ImageError, "unreadable_image", tmp_path / "bomb", *names):
        open_image(tmp_path / "bomb")


def exif_of(values: int, kind: int, count: int, offset: int, length: int) -> bytes:
    """EXIF data with the orientation 6 and many equal values; `length` bytes in all."""
    entries = [(0x0112, 3, 1, 6), *((tag, kind, count, offset) for tag in range(2000, 2000 + values))]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed).ljust(length, b"\1")


def with_exif(name: str, exif: bytes) -> bytes:
    if name == "JPEG":
        return jpeg(b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif)
    if name == "MPF":
        return jpeg(b"\xff\xe2" + struct.pack(">H", len(exif) + 6) + b"MPF\0" + exif)
    if name == "PNG":
        return png(chunk(b"eXIf", exif))
    if name == "text":
        return png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n9\n" + exif.hex().encode()))
    content = webp_with_exif(1)
    body = content[12 : content.index(b"EXIF")] + b"EXIF" + struct.pack("<I", len(exif)) + exif
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize("name", ["JPEG", "MPF", "PNG", "text", "WEBP"])
def test_exif_values_that_share_their_bytes_are_refused(name):
    """Each of 4,000 values lies in the same 15 kB; as Python objects they would take 1 GB."""
    content = with_exif(name, exif_of(4_000, 3, 7_500, 49_000, 65_000))
    with refused(ImageError, "unreadable_image", "16777216 bytes of values"):
        ImageFile("a", content).rgb()
    single = with_exif(name, exif_of(3, 3, 7_500, 49_000, 65_000))  # single values that do are none
    if name != "MPF":
        assert ImageFile("a", single).orientation()[0] == 6


@pytest.mark.slow
def test_damaged_exif_values_fill_no_log(tmp_path):
    (tmp_path / "a.webp").write_bytes(with_exif("WEBP", exif_of(60_000, 7, 250_000, 1 << 30, 721_000)))
    command = [sys.executable, "-c", READER, str(tmp_path / "a.webp")]
    more = {"env": environment(OMP_NUM_THREADS="1"), "timeout": GUARD_S}
    reader = subprocess.run(command, capture_output=True, text=True, **more)
    assert (reader.stdout, reader.stderr) == ("(8, 8)\n", "")


def test_ordinary_metadata_is_no_bomb():
    segments = b"\xff\xe2" + struct.pack(">H", 60_002) + b"x" * 60_000
    assert ImageFile("a", jpeg(segments * 100)).rgb().size == (64, 64)  # a colour profile of 6 MB
    assert ImageFile("a", png(chunk(b"tEXt", b"a\0b") * 900)).rgb().size == (2, 2)
    film = np.random.default_rng(0).bytes(10_000_000)  # has the bytes of a scan's marker 150 times
    assert ImageFile("a", jpeg() + film).rgb().size == (64, 64)
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=True, quality=95, restart_marker_blocks=1)
    assert ImageFile("a", buffer.getvalue()).rgb().size == (512, 512)


def test_the_number_of_pixels_is_checked_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(images.ImageOps, "exif_transpose", lambda *_, **__: pytest.fail("decoded"))
    for content in accepted_files():
        with refused(ImageError, "too_large", "a: ", "limit is 100"):
            ImageFile("a", content).rgb(100)


@pytest.mark.parametrize(
    "fault",
    [MemoryError(), struct.error("short"), zlib.error("broken"), RecursionError(), OverflowError(), KeyError(3)],
)
def test_every_exception_of_pillow_is_an_image_error(fault, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(images.ImageOps, "exif_transpose", fail)
    path, _ = image_file(tmp_path, 7)
    with refused(ImageError, "unreadable_image", path, f"({str(fault) or type(fault).__name__})"):
        open_image(path)


def test_digest_and_pixels_are_of_the_same_bytes(tmp_path):
    path, digest = image_file(tmp_path, 7)
    file = ImageFile.read(path)
    image_file(tmp_path, 9)[0].replace(path)
    assert file.sha256 == digest and file.rgb().getpixel((0, 0)) == (7, 7, 7)


async def test_too_many_open_files_are_a_fault_of_the_service_and_not_of_the_image(make_engine, monkeypatch, tmp_path):
    path, digest = image_file(tmp_path, 7)
    engine = make_engine(BoxSegmenter())

    def full(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(images, "read_regular", full)
        with refused(SegmenterError, "image_not_read", path, "Too many open files"):
            await engine.segment(path, digest, [BOX])
    assert len(await engine.segment(path, digest, [BOX])) == 1
