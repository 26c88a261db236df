"""The two caches of embeddings: in memory, bounded in bytes, and optionally in a folder that later runs reuse."""

from __future__ import annotations

import logging
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import LRUCache

from samr1_verl.rows.files import complete
from samr1_verl.segmenters.base import Embedding

_log = logging.getLogger(__name__)
_SIZE = "original_size"  # (H, W), beside the embedding's own arrays
_HALVED = "@float16"  # suffix of the name of a float32 array that is stored as float16
_STALE_S = 3600  # age in seconds from which a partial file is regarded as left by a killed process


def halved(embedding: Embedding) -> Embedding:
    """The embedding with its float32 arrays as float16, except arrays with a value above float16's maximum, 65,504."""
    arrays = {}
    for name, array in embedding.arrays.items():
        if array.dtype == np.float32 and np.abs(array).max(initial=0) <= np.finfo(np.float16).max:
            arrays[name + _HALVED] = array.astype(np.float16)
        else:
            arrays[name] = array
    return Embedding(arrays, embedding.size)


def restored(embedding: Embedding) -> Embedding:
    """The inverse of `halved`: float32 arrays again, with values of float16 precision; other arrays are unchanged."""
    return Embedding(
        {
            name.removesuffix(_HALVED): array.astype(np.float32) if name.endswith(_HALVED) else array
            for name, array in embedding.arrays.items()
        },
        embedding.size,
    )


def memory_cache(limit: int) -> LRUCache[str, Embedding]:
    """Embeddings by key, at most `limit` bytes; the least recently used is dropped first. Callers hold a lock."""
    return LRUCache(limit, getsizeof=lambda embedding: embedding.nbytes)


class FolderCache:
    """Embeddings of one segmenter: one .npz file per image, named by the image's digest.

    A file appears under its name only when it is complete, so several processes may share a folder. An image whose
    file is unreadable is encoded again. An embedding that cannot be written is not stored. Both are logged; neither
    fails a reward.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder.expanduser() / re.sub(r"[^\w.-]", "_", identity)
        self._remove_stale()

    def get(self, digest: str) -> Embedding | None:
        """The embedding of the image with this SHA-256; None: not stored or unreadable."""
        path = self._path(digest)
        try:
            # opened here: NumPy leaves a file that it cannot read open
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            height, width = arrays.pop(_SIZE).tolist()
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            _log.warning("%s: not a readable embedding (%s); the image is encoded again", path, error)
            return None
        return Embedding(arrays, (height, width))

    def put(self, digest: str, embedding: Embedding) -> None:
        """Store the embedding of the image with this SHA-256."""
        path = self._path(digest)
        contents: dict[str, Any] = {**embedding.arrays, _SIZE: np.asarray(embedding.size)}
        try:
            with complete(path) as partial, partial.open("wb") as file:
                np.savez(file, **contents)
        except OSError as error:
            _log.warning("%s: the embedding is not kept on disk (%s)", path, error)

    def _remove_stale(self) -> None:
        for partial in self.folder.glob(".*.partial"):
            try:
                if time.time() - partial.stat().st_mtime > _STALE_S:
                    partial.unlink()
            except OSError as error:  # another process was first, or the folder is read-only
                _log.info("%s stays (%s)", partial, error)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.npz"
