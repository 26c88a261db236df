"""An embedding folder whose files were damaged or exchanged: every answer is as without the folder."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from samr1_verl.segmenters import Embedding, Prompt, SegmenterError
from samr1_verl.service.cache import FolderCache
from tests.errors import refused
from tests.service.fake import BoxSegmenter, image_file

BOX = Prompt((2, 1, 8, 5))
DIGEST = "1" * 64


class GreySegmenter(BoxSegmenter):
    """The score of its masks is the grey of the image, so an embedding of another image is seen."""

    def decode(self, embedding, prompts):
        predictions = super().decode(embedding, prompts)
        return [type(one)(one.mask, float(embedding.arrays["mean"][0])) for one in predictions]


def files_of(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


async def test_files_that_were_exchanged_are_encoded_again(make_engine, tmp_path, caplog):
    images = [image_file(tmp_path, grey) for grey in (10, 200)]
    first = make_engine(GreySegmenter(), cache_dir=tmp_path / "cache")
    for image in images:
        await first.segment(*image, [BOX])
    one, other = files_of(tmp_path / "cache")
    shutil.move(one, tmp_path / "kept")
    shutil.move(other, one)
    shutil.move(tmp_path / "kept", other)
    for encodes in (2, 0):  # the second engine finds what the first one put back
        later = make_engine(GreySegmenter(), cache_dir=tmp_path / "cache")
        scores = [(await later.segment(*image, [BOX]))[0].score for image in images]
        assert scores == [10, 200] and later.counters().encodes == encodes
    assert "its image is" in caplog.text


async def test_files_of_another_segmenter_are_encoded_again(make_engine, tmp_path):
    image = image_file(tmp_path, 10)
    segmenter, other = GreySegmenter(), GreySegmenter()
    other.identity = "boxes_1"  # the same folder on disk
    await make_engine(segmenter, cache_dir=tmp_path / "cache").segment(*image, [BOX])
    later = make_engine(other, cache_dir=tmp_path / "cache")
    await later.segment(*image, [BOX])
    assert later.counters().encodes == 1


def test_no_flipped_byte_and_no_cut_is_taken_for_the_embedding(tmp_path):
    cache = FolderCache(tmp_path, "sam")
    arrays = {"a": np.arange(64, dtype=np.float32), "b": np.arange(64, dtype=np.uint16)}
    cache.put(DIGEST, Embedding(arrays, (10, 20)))
    (file,) = files_of(tmp_path)
    whole = file.read_bytes()
    rng = np.random.default_rng(13)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        assert cache.get(DIGEST) is None and not file.exists(), position
        file.write_bytes(whole[:position])
        assert cache.get(DIGEST) is None and not file.exists(), position
    file.write_bytes(whole + b"\0")
    assert cache.get(DIGEST) is None
    file.write_bytes(whole)
    found = cache.get(DIGEST)
    assert found is not None and found.size == (10, 20)
    assert all(
        (found.arrays[name] == array).all() and found.arrays[name].dtype == array.dtype
        for name, array in arrays.items()
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_whole_file_with_values_that_are_no_numbers_is_removed(tmp_path, value, dtype):
    cache = FolderCache(tmp_path, "sam")
    cache.put(DIGEST, Embedding({"a": np.array([1, value], dtype)}, (10, 20)))
    assert cache.get(DIGEST) is None and files_of(tmp_path) == []


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
def test_bits_of_bfloat16_that_are_no_number_are_seen(bits):
    assert Embedding({"a": np.array([0x3F80], np.uint16)}, (1, 1)).not_finite() is None
    assert Embedding({"a": np.array([0x3F80, bits], np.uint16)}, (1, 1)).not_finite() == "a"


@pytest.mark.parametrize("cache_dtype", ["float32", "float16"])
async def test_an_encoder_that_makes_nan_is_a_fault_and_no_score(make_engine, tmp_path, cache_dtype):
    class Broken(BoxSegmenter):
        def encode(self, image):
            embedding = super().encode(image)
            embedding.arrays["mean"][3] = np.nan
            return embedding

    engine = make_engine(Broken(), cache_dir=tmp_path / "cache", cache_dtype=cache_dtype)
    for _ in range(2):  # nothing of it is kept
        with refused(SegmenterError, "embedding_not_finite", "7.png: ", "boxes/1", "array mean"):
            await engine.segment(*image_file(tmp_path, 7), [BOX])
    assert files_of(tmp_path / "cache") == [] and engine.counters().cached_bytes == 0


async def test_what_is_no_file_costs_the_folder_only(make_engine, tmp_path):
    path, digest = image_file(tmp_path, 7)
    place = tmp_path / "cache" / "boxes_1" / f"{digest}.safetensors"
    place.parent.mkdir(parents=True)
    os.mkfifo(place)  # without the check that it is a regular file, opening it waits for ever
    assert len(await make_engine(BoxSegmenter(), cache_dir=tmp_path / "cache").segment(path, digest, [BOX])) == 1
    assert place.is_file()  # the embedding has replaced it
    place.unlink()
    place.mkdir()
    assert len(await make_engine(BoxSegmenter(), cache_dir=tmp_path / "cache").segment(path, digest, [BOX])) == 1


def test_arrays_come_back_in_their_order(tmp_path):
    """SAM 2's backend reads its levels by their place, and the file's format has no order."""
    arrays = {f"level.{number}": np.full(3, number, np.float32) for number in (5, 0, 3, 1, 4, 2)}
    cache = FolderCache(tmp_path, "sam")
    cache.put(DIGEST, Embedding(arrays, (10, 20)))
    for _ in range(20):
        found = cache.get(DIGEST)
        assert found is not None and list(found.arrays) == list(arrays)
