"""Frames against real processors: the size the adapter assumes is the one they make, and answers come back.

An answer is text, so its numbers are whole: rounding in the policy's frame is part of every round trip here.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from samr1_verl.geometry.frames import Frame, boxes_from_policy, boxes_to_policy, points_from_policy, points_to_policy
from samr1_verl.geometry.masks import inscribed_points
from samr1_verl.prompts.policy_image import PolicySize
from samr1_verl.segmenters.base import Prompt
from samr1_verl.segmenters.onnx import SIDE, preprocess, prompt_arrays, resized
from tests.processors import qwen_processor


@dataclass(frozen=True)
class Case:
    """A processor, the size that every image gets (None: the processor's own), and the frame of answers."""

    patch_size: int
    min_pixels: int
    max_pixels: int
    fixed_wh: tuple[int, int] | None
    frame: Frame

    @property
    def limits(self) -> dict[str, int]:
        return {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}

    def policy_size(self) -> PolicySize:
        return PolicySize(qwen_processor(self.patch_size, **self.limits), self.fixed_wh, {})


CASES = {
    "Qwen2.5-VL": Case(14, 4 * 28 * 28, 16384 * 28 * 28, None, "absolute"),
    "Qwen2.5-VL, few pixels": Case(14, 256 * 28 * 28, 1280 * 28 * 28, None, "absolute"),
    "Qwen3-VL": Case(16, 65_536, 16_777_216, None, "thousand"),
    "stretched": Case(14, 4 * 28 * 28, 16384 * 28 * 28, (840, 840), "absolute"),
}
LARGEST = (6000, 4000)
RATIO = 200  # Qwen's processors refuse more
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
sizes = st.tuples(st.integers(1, LARGEST[0]), st.integers(1, LARGEST[1])).filter(lambda wh: max(wh) <= RATIO * min(wh))


def edges(function):
    for size in ((1, 1), (1, RATIO), (RATIO, 1), (27, 5400), (5615, 29), LARGEST, (29, 31)):
        function = example(original=size, seed=0)(function)
    return function


def policy_step(case: Case, original: tuple[int, int], policy: tuple[int, int]) -> np.ndarray:
    """One unit of the policy's numbers in pixels of the original, XY."""
    return np.array(original) / (policy if case.frame == "absolute" else (1000, 1000))


@cases
@edges
@given(original=sizes, seed=st.integers(0, 2**32 - 1))
def test_a_box_survives_the_round_trip_within_half_a_pixel(case: Case, original, seed: int) -> None:
    policy = case.policy_size()(original)
    corners = np.sort(np.random.default_rng(seed).uniform(0, 1, (2, 2)), axis=0) * original
    box = corners.reshape(4)
    there = boxes_to_policy(box, original, policy, case.frame)
    assert np.abs(boxes_from_policy(there, original, policy, case.frame) - box).max() < 1e-6
    back = boxes_from_policy(np.round(there), original, policy, case.frame)
    # half a pixel of the coarser frame, which is the original's wherever the policy sees it enlarged
    half = np.maximum(policy_step(case, original, policy), 1) / 2
    assert (np.abs(back - box) <= np.tile(half, 2) + 1e-6).all()


@cases
@settings(deadline=None)
@given(
    original=st.tuples(st.integers(40, 700), st.integers(40, 500)),
    shape=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_points_stay_inside_their_masks(case: Case, original, shape) -> None:
    width, height = original
    rows, columns = np.ogrid[:height, :width]
    left, top, wide, tall = shape
    centre, radii = (left * width, top * height), (2 + wide * width / 2, 2 + tall * height / 2)
    mask = ((columns + 0.5 - centre[0]) / radii[0]) ** 2 + ((rows + 0.5 - centre[1]) / radii[1]) ** 2 <= 1
    if not mask.any():
        return
    policy = case.policy_size()(original)
    step = np.maximum(policy_step(case, original, policy), 1)
    for point in np.array(inscribed_points(mask)):
        back = points_from_policy(
            np.round(points_to_policy(point, original, policy, case.frame)), original, policy, case.frame
        )
        x, y = point.astype(int)
        reach = np.ceil(step).astype(int)
        window = mask[max(0, y - reach[1]) : y + reach[1] + 1, max(0, x - reach[0]) : x + reach[0] + 1]
        whole = (reach[0] <= x < width - reach[0]) and (reach[1] <= y < height - reach[1])
        if whole and window.all():  # a pixel of margin on every side
            assert mask[int(back[1]), int(back[0])]


@cases
@edges
@settings(deadline=None)
@given(original=sizes, seed=st.just(0))
def test_the_assumed_frame_is_the_one_that_the_processor_counts(case: Case, original, seed: int) -> None:
    """transformers says itself how many patches it makes of an image, without seeing it."""
    processor = qwen_processor(case.patch_size, **case.limits).image_processor
    policy_size = case.policy_size()
    width, height = policy_size(original)
    patches = processor.get_number_of_image_patches(height, width, {})
    assert (width % case.patch_size, height % case.patch_size) == (0, 0)
    assert patches == width * height // case.patch_size**2
    assert policy_size.tokens((width, height)) == patches // processor.merge_size**2
    assert max(width, height) <= RATIO * min(width, height)
    if case.fixed_wh is None and processor_keeps_its_size(case, original, processor.merge_size):
        assert patches == processor.get_number_of_image_patches(original[1], original[0], {})


def processor_keeps_its_size(case: Case, original: tuple[int, int], merge_size: int) -> bool:
    """False where the processor rounds the image to a size that it would refuse: 5615x29 to 5628x28."""
    own = smart_resize(original[1], original[0], case.patch_size * merge_size, **case.limits)
    return max(own) <= RATIO * min(own)


@pytest.mark.parametrize(
    "original", [(1, 1), (1, 150), (300, 2), (333, 77), (640, 480), (3000, 20), LARGEST, (4000, 6000)]
)
@cases
def test_the_assumed_frame_is_the_one_that_the_processor_made(case: Case, original: tuple[int, int]) -> None:
    processor = qwen_processor(case.patch_size, **case.limits)
    policy = case.policy_size()(original)

    def made(size_wh: tuple[int, int]) -> tuple[int, int]:
        _, rows, columns = processor.image_processor(Image.new("RGB", size_wh), return_tensors="pt")["image_grid_thw"][
            0
        ]
        return int(columns) * case.patch_size, int(rows) * case.patch_size

    assert made(policy) == policy, "the adapter resizes, the processor leaves it alone"
    if case.fixed_wh is None and max(original) < LARGEST[0]:
        assert made(original) == policy, "the size is the processor's own"


def test_more_extreme_images_are_refused_unless_stretched() -> None:
    with pytest.raises(ValueError, match="aspect ratio"):
        CASES["Qwen2.5-VL"].policy_size()((1, RATIO + 1))
    assert CASES["stretched"].policy_size()((1, 6000)) == (840, 840)


@pytest.mark.parametrize("max_pixels", [28 * 28, 840 * 840, 1280 * 28 * 28, 16384 * 28 * 28])
@pytest.mark.parametrize("original", [(139, 26549), (26549, 139), (1, RATIO), (41, 8190), (14, 2800), (70, 13999)])
def test_the_size_of_very_long_images_is_one_that_the_processor_keeps(
    original: tuple[int, int], max_pixels: int
) -> None:
    processor = qwen_processor(14, min_pixels=28 * 28, max_pixels=max_pixels)
    width, height = size = PolicySize(processor, None, {})(original)
    assert max(size) <= RATIO * min(size) and width * height <= max_pixels
    assert (width % 28, height % 28) == (0, 0)
    grid = processor.image_processor(Image.new("RGB", size), return_tensors="pt")["image_grid_thw"][0]
    assert (int(grid[2]) * 14, int(grid[1]) * 14) == size


def test_limits_that_no_long_image_can_meet_are_an_error_that_names_it() -> None:
    policy_size = PolicySize(qwen_processor(14, min_pixels=27_000, max_pixels=27_001), None, {})
    with pytest.raises(ValueError, match="10x2000 pixels"):
        policy_size((10, 2000))


letterboxed = sizes.filter(lambda wh: min(resized((wh[1], wh[0]))) > 0)


@edges
@given(original=letterboxed, seed=st.integers(0, 2**32 - 1))
def test_a_box_survives_the_letterbox(original, seed: int) -> None:
    """SAM's own frame: the longest side at 1024, the rest padded."""
    width, height = original
    box = (np.sort(np.random.default_rng(seed).uniform(0, 1, (2, 2)), axis=0) * original).reshape(4)
    corners, _ = prompt_arrays(Prompt(tuple(box)), (height, width))
    there, inside = corners.reshape(4), resized((height, width))[::-1]
    assert (there >= 0).all() and (there <= np.tile(inside, 2) + 1e-3).all(), "nothing lies in the padding"
    back = boxes_from_policy(there, original, inside, "absolute")
    assert np.abs(back - box).max() < 0.5


@pytest.mark.parametrize("original", [(640, 480), (480, 640), (1500, 100), (100, 60), (1024, 1024)])
def test_the_letterbox_shows_an_object_where_its_box_says(original: tuple[int, int]) -> None:
    width, height = original
    image = np.zeros((height, width, 3), np.uint8)
    box = (width // 4, height // 3, width // 2, height // 2)
    image[box[1] : box[3], box[0] : box[2]] = 255
    pixels = preprocess(image)[0].max(axis=0)
    seen = pixels > (pixels.min() + pixels.max()) / 2
    corners = prompt_arrays(Prompt(tuple(map(float, box))), (height, width))[0].reshape(4)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert np.abs(found - corners).max() <= 1 and seen.shape == (SIDE, SIDE)
