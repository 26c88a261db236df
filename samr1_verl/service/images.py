"""Which image files a server reads: under its roots, or uploaded."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from samr1_verl.geometry.images import ImageError
from samr1_verl.service.engine import UnknownImageError


class OutsideRootsError(PermissionError):
    """A path that leads out of the configured roots."""


class Images:
    """Files by path under roots, and uploads in a temporary folder that goes with the process, the oldest removed
    beyond a bound.

    Args:
        roots: folders whose files may be named; symbolic links are followed before the check.
        upload_bytes: bound of the uploads that are kept.
        max_pixels: of an upload.
    """

    def __init__(self, roots: Sequence[Path], upload_bytes: int, max_pixels: int) -> None:
        self._roots = [root.expanduser().resolve(strict=True) for root in roots]
        self._upload_bytes, self._max_pixels = upload_bytes, max_pixels
        self._folder = tempfile.TemporaryDirectory(prefix="samr1_uploads_")

    def find(self, path: str | None, sha256: str) -> Path | None:
        """The file of a request, or None where there is only a digest and no upload of it.

        Raises:
            OutsideRootsError: the path leads elsewhere.
            UnknownImageError: there is no such file.
            ImageError: no file can have this path.
        """
        if path is None:
            upload = self._upload(sha256)
            return upload if upload.exists() else None
        if "\0" in path:
            raise ImageError("image.path holds a null character")
        for root in self._roots:
            found = Path(os.path.realpath(root / path))  # an absolute path replaces the root
            if found.is_relative_to(root):
                if os.path.isfile(found):  # unlike Path.is_file, false for a name that is too long
                    return found
                if Path(path).is_absolute() or len(self._roots) == 1:
                    raise UnknownImageError(f"{path}: no such file on the server. Upload the image")
        raise OutsideRootsError(
            f"{path} is not under the server's roots. Upload the image, or start the server with it"
        )

    async def add(self, sha256: str, chunks: AsyncIterator[bytes]) -> tuple[Path, tuple[int, int]]:
        """Keep an upload; its path and (H, W) before EXIF orientation.

        Raises:
            ImageError: the bytes are not what the digest says, or no image, or one of too many pixels.
        """
        digest = hashlib.sha256()
        descriptor, partial = tempfile.mkstemp(dir=self._folder.name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                async for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if (found := digest.hexdigest()) != sha256:
                raise ImageError(f"the upload's SHA-256 is {found}, the request says {sha256}")
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
