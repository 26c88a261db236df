"""The two caches of embeddings: in memory, bounded in bytes, and optionally in a folder that later runs reuse."""

from __future__ import annotations

import json
import logging
import re
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from cachetools import LRUCache
from safetensors.numpy import load, save

from samr1_verl.geometry.files import read_regular
from samr1_verl.rows.files import complete
from samr1_verl.segmenters.base import Embedding

_log = logging.getLogger(__name__)
_SIZE = "original_size"  # "H W", in a file's metadata
_ORDER = "arrays"  # their names in order, as JSON: a segmenter may read them by their place
_SEAL = re.compile(rb'"checksum":"([0-9a-f]{8})"')
_HEADER = 1 << 16  # bytes of a file that contain its checksum
_MAX_BYTES = 1 << 30  # of a file; the embedding of SAM 2 has 20 MB
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
    """The inverse of `halved`: float32 arrays again, with values of float16 precision; the same object if none is."""
    if not any(name.endswith(_HALVED) for name in embedding.arrays):
        return embedding  # a segmenter knows by the object that an embedding is on its device already
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
    """Embeddings of one segmenter: one .safetensors file per image, named by the image's digest.

    A file appears under its name only when it is complete, so several processes may share a folder. It holds the
    image's digest, the segmenter's identity and a checksum of all its bytes. A file that does not belong to its image
    and segmenter, or is damaged, is removed, and its image encoded again. An embedding that cannot be written is not
    stored. All of this is logged; none of it fails a reward.

    Args:
        folder: of all segmenters.
        identity: of the segmenter, and of the form in which its embeddings are kept.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._identity = identity
        self.folder = folder.expanduser() / re.sub(r"[^\w.-]", "_", identity)
        self._remove_stale()

    def get(self, digest: str) -> Embedding | None:
        """The embedding of the image with this SHA-256; None: not stored, unreadable, or not this image's."""
        path = self._path(digest)
        try:
            content = read_regular(path, _MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:  # may pass: the file stays
            _log.warning("%s: not readable (%s); the image is encoded again", path, error)
            return None
        try:
            return _unpacked(content, {"image": digest, "segmenter": self._identity})
        except Exception as error:  # whatever the bytes are, they fail no reward
            _log.warning("%s: not the embedding (%s); it is removed, and the image encoded again", path, error)
            with suppress(OSError):
                path.unlink()
            return None

    def put(self, digest: str, embedding: Embedding) -> None:
        """Store the embedding of the image with this SHA-256."""
        path = self._path(digest)
        try:
            content = _packed(embedding, {"image": digest, "segmenter": self._identity})
            with complete(path) as partial, partial.open("wb") as file:
                file.writelines(content)
        except Exception as error:  # such as a full disk, or an array of a type that the format does not have
            _log.warning("%s: the embedding is not kept on disk (%s)", path, error)

    def _remove_stale(self) -> None:
        for partial in self.folder.glob(".*.partial"):
            try:
                if time.time() - partial.stat().st_mtime > _STALE_S:
                    partial.unlink()
            except OSError as error:  # another process was first, or the folder is read-only
                _log.info("%s stays (%s)", partial, error)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


def _packed(embedding: Embedding, about: dict[str, str]) -> tuple[bytes | memoryview, ...]:
    """The parts of a file. `about`: what it is the embedding of."""
    arrays = {name: np.ascontiguousarray(array) for name, array in embedding.arrays.items()}
    size, order = " ".join(map(str, embedding.size)), json.dumps(list(arrays))
    content = memoryview(save(arrays, {**about, _SIZE: size, _ORDER: order, "checksum": "0" * 8}))
    before, _, after = _parted(content)
    return before, _checksum(before, after), after


def _unpacked(content: bytes, about: dict[str, str]) -> Embedding:
    """The inverse of `_packed`. Raises Exception where the file is damaged, or of another image or segmenter."""
    before, checksum, after = _parted(memoryview(content))
    if _checksum(before, after) != checksum:
        raise ValueError("its checksum differs")
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    for name, expected in about.items():
        if metadata[name] != expected:
            raise ValueError(f"its {name} is {metadata[name]}, expected {expected}")
    height, width = map(int, metadata[_SIZE].split())
    arrays = load(content)  # in no order
    embedding = Embedding({name: arrays.pop(name) for name in json.loads(metadata[_ORDER])}, (height, width))
    if arrays:
        raise ValueError(f"it has further arrays: {', '.join(arrays)}")
    if (array := embedding.not_finite()) is not None:
        raise ValueError(f"{array} has values that are no numbers")
    return embedding


def _parted(content: memoryview) -> tuple[memoryview, bytes, memoryview]:
    """The bytes before the checksum, the checksum, and the bytes after it. Raises ValueError where there is none."""
    seal = _SEAL.search(content[:_HEADER])
    if seal is None:
        raise ValueError("it has no checksum")
    return content[: seal.start(1)], bytes(seal[1]), content[seal.end(1) :]


def _checksum(before: memoryview, after: memoryview) -> bytes:
    """CRC-32 of a file, 8 hexadecimal digits, from its bytes before and after the checksum.

    It finds damage. A person who may write to the folder can store any embedding, whatever the checksum.
    """
    return b"%08x" % zlib.crc32(after, zlib.crc32(before))
