"""Frames: what goes to the policy's frame comes back; images open as a person sees them."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samr1_verl.frames import (
    ImageError,
    boxes_from_policy,
    boxes_to_policy,
    open_image,
    points_from_policy,
    points_to_policy,
    sha256_of,
)

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


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_every_mode_opens_as_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    Image.new("RGB", (8, 6), (200, 100, 50)).convert(mode).save(file)
    image = open_image(file)
    assert (image.mode, image.size) == ("RGB", (8, 6))


def test_missing_and_unreadable_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "cut.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(cut.read_bytes()[:3000])
    for name, message in (("none.png", "no such image"), ("text.png", "unreadable"), ("cut.png", "unreadable")):
        with pytest.raises(ImageError, match=f"{name}.*{message}"):
            open_image(tmp_path / name)
    with pytest.raises(ImageError, match=r"none\.png: no such image"):
        sha256_of(tmp_path / "none.png")


def test_digest_is_of_the_files_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert sha256_of(tmp_path / "a") == sha256(b"abc" * 1_000_000).hexdigest()
