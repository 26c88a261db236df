"""Frames: what goes to the policy's frame comes back; images open as a person sees them."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samr1_verl.geometry.frames import (
    boxes_from_policy,
    boxes_to_policy,
    points_from_policy,
    points_to_policy,
    turn_box,
    turn_mask,
)
from samr1_verl.geometry.images import ImageError, ImageFile, open_image, sha256_of
from samr1_verl.geometry.masks import box_of
from tests.errors import refused

sizes = st.tuples(st.integers(1, 6000), st.integers(1, 4000))
frames = st.sampled_from(["absolute", "thousand"])
fractions = st.lists(st.floats(0, 1), min_size=4, max_size=4)


@given(sizes, sizes, frames, fractions)
def test_boxes_and_points_survive_the_round_trip(original, policy, frame, fractions) -> None:
    box = np.array(fractions) * [*original, *original]
    there = boxes_to_policy(box, original, policy, frame)
    assert np.allclose(boxes_from_policy(there, original, policy, frame), box, atol=1e-6)
    assert np.allclose(points_to_policy(box[:2], original, policy, frame), there[:2])
    assert np.allclose(points_from_policy(there[2:], original, policy, frame), box[2:], atol=1e-6)


def test_frames_meet_at_the_image_borders() -> None:
    whole = [0, 0, 640, 480]
    assert boxes_to_policy(whole, (640, 480), (840, 840), "absolute").tolist() == [0, 0, 840, 840]
    assert boxes_to_policy(whole, (640, 480), (840, 840), "thousand").tolist() == [0, 0, 1000, 1000]


def test_unknown_frame_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'percent'.*'absolute'.*'thousand'"):
        points_to_policy([0, 0], (1, 1), (1, 1), "percent")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (20, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_was_drawn_on_the_stored_pixels_turns_with_the_image(tmp_path: Path, orientation: int) -> None:
    stored = np.zeros((20, 40), dtype=np.uint8)
    stored[3:9, 5:30] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    shown = np.asarray(open_image(tmp_path / "a.png"))[..., 0] > 0
    assert ImageFile.read(tmp_path / "a.png").orientation() == (orientation, (40, 20))
    assert np.array_equal(turn_mask(stored > 0, orientation), shown)
    assert turn_box(box_of(stored > 0), (40, 20), orientation).tolist() == box_of(shown)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_every_mode_opens_as_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    Image.new("RGB", (8, 6), (200, 100, 50)).convert(mode).save(file)
    image = open_image(file)
    assert (image.mode, image.size) == ("RGB", (8, 6))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_brought_to_eight(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(values).save(tmp_path / f"a.{suffix}", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / f"a.{suffix}"))[..., 1], (values >> 8)[::-1, ::-1])


def test_cmyk_photographs_keep_their_colours(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), (200, 100, 50)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(np.asarray(open_image(tmp_path / "a.jpg")).astype(int) - (200, 100, 50)).max() < 10


def test_numbers_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tiff")
    with refused(ImageError, "wrong_bit_depth", tmp_path / "a.tiff", "0.5 to 0.5", "mode F", "8 or 16 bits"):
        open_image(tmp_path / "a.tiff")


def test_an_image_too_large_to_be_meant_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with refused(ImageError, "unreadable_image", tmp_path / "a.png", "decompression bomb"):
        open_image(tmp_path / "a.png")


def test_missing_and_unreadable_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "cut.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(cut.read_bytes()[:3000])
    for name in ("none.png", "text.png", "cut.png"):
        with refused(ImageError, "no_such_image" if name == "none.png" else "unreadable_image", tmp_path / name):
            open_image(tmp_path / name)
    with refused(ImageError, "no_such_image", tmp_path / "none.png"):
        sha256_of(tmp_path / "none.png")


def test_digest_is_of_the_files_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert sha256_of(tmp_path / "a") == sha256(b"abc" * 1_000_000).hexdigest()
