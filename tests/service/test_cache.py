"""Embeddings in a folder: later runs use them, and no fault of the folder is a fault of a reward."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from samr1_verl.segmenters import Embedding
from samr1_verl.service.cache import FolderCache
from samr1_verl.service.engine import Counters
from tests.service.fake import BoxSegmenter, image_file
from tests.service.test_engine import BOX


async def test_a_folder_keeps_embeddings_for_a_later_run(make_engine, tmp_path):
    segmenter = BoxSegmenter()
    path, digest = image_file(tmp_path, 7)
    await make_engine(segmenter, cache_dir=tmp_path / "cache").segment(path, digest, [BOX])
    files = [file.relative_to(tmp_path / "cache") for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert [str(file) for file in files] == [f"boxes_1/{digest}.safetensors"]
    path.unlink()  # what is kept needs no image
    later = make_engine(segmenter, cache_dir=tmp_path / "cache")
    (prediction,) = await later.segment(path, digest, [BOX])
    assert prediction.mask.shape == (10, 20)
    assert len(segmenter.encoded) == 1
    assert later.counters() == Counters(requests=1, disk_hits=1, decodes=1, cached_bytes=4096)


@pytest.mark.parametrize("keep", [0, 10, 2000, 4200])
async def test_a_truncated_file_in_the_folder_is_encoded_again_and_replaced(make_engine, tmp_path, keep, caplog):
    segmenter = BoxSegmenter()
    image = image_file(tmp_path, 7)
    await make_engine(segmenter, cache_dir=tmp_path / "cache").segment(*image, [BOX])
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    os.truncate(file, keep)
    for _ in range(2):
        await make_engine(segmenter, cache_dir=tmp_path / "cache").segment(*image, [BOX])
    assert len(segmenter.encoded) == 2
    assert str(file) in caplog.text and "encoded again" in caplog.text


async def test_a_folder_that_cannot_be_written_costs_the_folder_only(make_engine, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    engine = make_engine(BoxSegmenter(), cache_dir=tmp_path / "cache")
    assert len(await engine.segment(*image_file(tmp_path, 7), [BOX])) == 1
    assert "not kept on disk" in caplog.text


async def test_a_full_disk_costs_the_folder_only(make_engine, tmp_path, caplog):
    image = image_file(tmp_path, 7)
    engine = make_engine(BoxSegmenter(kilobytes=1000), 10_000_000, tmp_path / "cache")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # writes beyond it fail as on a full disk
    try:
        assert len(await engine.segment(*image, [BOX])) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []
    assert "not kept on disk" in caplog.text


@pytest.mark.slow
def test_a_kill_in_mid_write_leaves_whole_files_only(tmp_path):
    program = """
import sys, numpy as np
from pathlib import Path
from samr1_verl.segmenters import Embedding
from samr1_verl.service.cache import FolderCache
cache, number = FolderCache(Path(sys.argv[1]), "sam"), 0
while True:
    cache.put(f"{number:064x}", Embedding({"a": np.full(1_000_000, number, np.float32)}, (10, 20)))
    print(number, flush=True)
    number += 1
"""
    read = 0
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(20):
            assert writer.stdout is not None and writer.stdout.readline()
        time.sleep(np.random.default_rng(read).uniform(0, 0.02))
        writer.kill()
        writer.communicate()
        cache = FolderCache(tmp_path, "sam")
        for file in cache.folder.glob("*.safetensors"):
            found = cache.get(file.stem)
            assert found is not None and (found.arrays["a"] == int(file.stem, 16)).all() and found.size == (10, 20)
            read += 1
    assert read >= 60


def test_partial_files_of_killed_processes_are_removed_when_they_are_old(tmp_path):
    cache = FolderCache(tmp_path, "sam")
    cache.put("0" * 64, Embedding({"a": np.zeros(3)}, (1, 1)))
    old, young = (cache.folder / f".{name}.safetensors.1.partial" for name in ("old", "young"))
    for partial in (old, young):
        partial.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    FolderCache(tmp_path, "sam")
    assert not old.exists() and young.exists() and cache.get("0" * 64) is not None
