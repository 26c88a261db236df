"""The image files that a server may read: files under its root folders, and uploads."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from samr1_verl.geometry.images import ImageError
from samr1_verl.service.embeddings import UnknownImageError


class OutsideRootsError(PermissionError):
    """A path that is not under any of the configured root folders."""


class Images:
    """Finds images by their path under the roots, and keeps uploads in a temporary folder.

    The folder is removed when the process ends. When the uploads exceed `upload_bytes`, the oldest are removed.

    Args:
        roots: folders whose files requests may name; symbolic links are resolved before the check.
        upload_bytes: maximum size of all kept uploads together.
        max_pixels: maximum number of pixels per upload.
    """

    def __init__(self, roots: Sequence[Path], upload_bytes: int, max_pixels: int) -> None:
        self._roots = [root.expanduser().resolve(strict=True) for root in roots]
        self._upload_bytes, self._max_pixels = upload_bytes, max_pixels
        self._folder = tempfile.TemporaryDirectory(prefix="samr1_uploads_")

    def find(self, path: str | None, sha256: str) -> Path | None:
        """The file of a request; None: no path is given and no upload has this digest.

        Args:
            path: absolute, or relative to a root; None: the upload with this digest.

        Raises:
            OutsideRootsError: the path is not under a root.
            UnknownImageError: there is no such file.
            ImageError: the path holds a null character.
        """
        if path is None:
            upload = self._upload(sha256)
            return upload if upload.exists() else None
        if "\0" in path:
            raise ImageError("image.path holds a null character")
        for root in self._roots:
            file = Path(os.path.realpath(root / path))  # an absolute path replaces the root
            if file.is_relative_to(root):
                if os.path.isfile(file):  # unlike Path.is_file, false for a name that is too long
                    return file
                if Path(path).is_absolute() or len(self._roots) == 1:
                    raise UnknownImageError(f"{path}: no such file on the server. Upload the image")
        raise OutsideRootsError(
            f"{path} is not under the server's roots. Upload the image, or start the server with its folder as a root"
        )

    async def add(self, sha256: str, chunks: AsyncIterator[bytes]) -> tuple[Path, tuple[int, int]]:
        """Store an upload. Returns its path and its size (H, W) before EXIF orientation.

        Raises:
            ImageError: the digest of the bytes differs from `sha256`, they are no image, or it has too many pixels.
        """
        digest = hashlib.sha256()
        descriptor, partial = tempfile.mkstemp(dir=self._folder.name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                async for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if (actual := digest.hexdigest()) != sha256:
                raise ImageError(f"the upload's SHA-256 is {actual}, the request says {sha256}")
            size = self._size_of(partial)
            os.replace(partial, self._upload(sha256))
        except BaseException:
            os.unlink(partial)
            raise
        self._remove_oldest()
        return self._upload(sha256), size

    def _upload(self, sha256: str) -> Path:
        return Path(self._folder.name, sha256)

    def _size_of(self, path: str) -> tuple[int, int]:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise ImageError(f"the upload is unreadable as an image ({error})") from error
        if width * height > self._max_pixels:
            raise ImageError(f"the upload has {width}x{height} pixels, the limit is {self._max_pixels}")
        return height, width

    def _remove_oldest(self) -> None:
        files = sorted(Path(self._folder.name).iterdir(), key=lambda file: file.stat().st_mtime)
        total = sum(file.stat().st_size for file in files)
        for file in files[:-1]:
            if total <= self._upload_bytes:
                return
            total -= file.stat().st_size
            file.unlink()
