"""Masks: RLE goes round, bad RLE is refused, boxes and points describe the mask."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from samr1_verl.geometry.masks import (
    MaskError,
    box_of,
    decode_rle,
    encode_rle,
    inscribed_points,
    intersection_union,
    union_rle,
)
from tests.errors import refused

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@given(masks)
def test_rle_goes_round(mask: np.ndarray) -> None:
    assert np.array_equal(decode_rle(encode_rle(mask), mask.shape), mask)


@given(masks, st.text(max_size=30))
def test_any_text_as_rle_is_a_mask_or_a_clear_error(mask: np.ndarray, text: str) -> None:
    try:
        assert decode_rle(text, mask.shape).shape == mask.shape
    except MaskError as error:
        assert "RLE" in str(error)


def test_rle_of_another_size_names_both_sizes() -> None:
    counts = encode_rle(np.ones((4, 5), dtype=bool))
    with refused(MaskError, "pixels_differ", "20 pixels", "3x5 = 15"):
        decode_rle(counts, (3, 5))


def test_cut_rle_is_refused() -> None:
    mask = np.zeros((50, 50), dtype=bool)
    mask[10:40, 10:40] = True
    with pytest.raises(MaskError):
        decode_rle(encode_rle(mask)[:-3], (50, 50))


def test_intersection_and_union_leave_ignored_pixels_out() -> None:
    #   prediction 1 1 0 0    truth 0 1 1 0    ignored: the second pixel
    pred, truth = np.array([[1, 1, 0, 0]], bool), np.array([[0, 1, 1, 0]], bool)
    assert intersection_union(pred, truth) == (1, 3)
    assert intersection_union(pred, truth, np.array([[0, 1, 0, 0]], bool)) == (0, 2)


def test_masks_of_different_sizes_have_no_overlap_to_measure() -> None:
    with refused(MaskError, "shape_differs", "(2, 2)", "(2, 3)"):
        intersection_union(np.ones((2, 2), bool), np.ones((2, 3), bool))


def test_union_of_no_masks_is_empty() -> None:
    assert not union_rle([], (3, 4)).any()


def test_box_covers_the_mask_from_edge_to_edge() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:5, 3:9] = True  # rows 2 to 4, columns 3 to 8
    assert box_of(mask) == [3.0, 2.0, 9.0, 5.0]
    with refused(MaskError, "empty_mask", "box"):
        box_of(np.zeros((2, 2), bool))


def test_first_inscribed_point_is_the_centre_of_a_square() -> None:
    mask = np.zeros((30, 30), dtype=bool)
    mask[5:16, 10:21] = True  # 11 x 11 pixels, so the middle pixel is (15, 10)
    assert inscribed_points(mask)[0] == [15.5, 10.5]


@given(masks.filter(np.any), st.integers(1, 3))
def test_inscribed_points_lie_on_the_mask(mask: np.ndarray, count: int) -> None:
    points = inscribed_points(mask, count)
    assert len(points) == count
    assert all(mask[int(y), int(x)] for x, y in points)


@given(masks.filter(np.any), st.integers(0, 9), st.integers(0, 9))
def test_inscribed_points_do_not_depend_on_what_lies_around_the_mask(mask: np.ndarray, left: int, top: int) -> None:
    moved = np.pad(mask, ((top, 5), (left, 5)))
    assert inscribed_points(moved) == [[x + left, y + top] for x, y in inscribed_points(mask)]
