"""The image files that a server may read: files under its root folders, and uploads."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from samr1_verl import Samr1Error
from samr1_verl.geometry.files import open_regular
from samr1_verl.geometry.images import ImageError, ImageFile
from samr1_verl.service.embeddings import UnknownImageError


class OutsideRootsError(PermissionError):
    """A path that is not under any of the configured root folders."""


class UploadTooLargeError(Samr1Error):
    """An upload that is larger than all uploads together may be."""


class UploadsFullError(Samr1Error):
    """No space for an upload until the embeddings of other uploads are made. A later attempt may succeed."""


class Images:
    """Finds images by their path under the roots, and keeps uploads in a temporary folder.

    The folder is removed when the process ends. When the uploads exceed `upload_bytes`, the oldest that nobody holds
    are removed. A request holds its upload until it is answered, an upload itself until its embedding is made.

    Args:
        roots: folders whose files requests may name; symbolic links are resolved before the check.
        upload_bytes: maximum size of all uploads together, those that are still being received included.
        max_pixels: maximum number of pixels per upload.
    """

    def __init__(self, roots: Sequence[Path], upload_bytes: int, max_pixels: int) -> None:
        self._roots = [root.expanduser().resolve(strict=True) for root in roots]
        self._upload_bytes, self._max_pixels = upload_bytes, max_pixels
        self._folder = tempfile.TemporaryDirectory(prefix="samr1_uploads_")
        self._lock = threading.Lock()  # guards the three below; an embedding is made in another thread
        self._kept: dict[str, int] = {}  # size in bytes by digest, the oldest upload first
        self._received = 0  # bytes of the uploads that are being received
        self._holders: Counter[str] = Counter()  # by digest, whether its upload is here or not

    def find(self, path: str | None, sha256: str) -> Path | None:
        """The file of a request; None: no path is given and no upload has this digest.

        Args:
            path: absolute, or relative to a root; None: the upload with this digest.

        Raises:
            OutsideRootsError: the path is not under a root.
            UnknownImageError: there is no such file, or the server may not read it.
            ImageError: the path holds a null character.
        """
        if path is None:
            return self._upload(sha256) if sha256 in self._kept else None
        if "\0" in path:
            raise ImageError("null_character", "image.path", "holds a null character")
        for root in self._roots:
            file = Path(os.path.realpath(root / path))  # an absolute path replaces the root
            if file.is_relative_to(root):
                try:
                    open_regular(file).close()
                    return file
                except OSError as error:
                    if Path(path).is_absolute() or len(self._roots) == 1:
                        reason = error.strerror or error
                        raise UnknownImageError(
                            "no_such_file", path, f"the server reads no such file ({reason}). Upload the image"
                        ) from error
        raise OutsideRootsError(
            f"{path} is not under the server's roots. Upload the image, or start the server with its folder as a root"
        )

    def hold(self, sha256: str) -> None:
        """Keep the upload with this digest, if there is one or when it comes, until `release`."""
        with self._lock:
            self._holders[sha256] += 1

    def release(self, sha256: str) -> None:
        """The inverse of one `hold`. May be called from any thread."""
        with self._lock:
            self._holders[sha256] -= 1
            if not self._holders[sha256]:
                del self._holders[sha256]

    @contextmanager
    def held(self, sha256: str) -> Iterator[None]:
        """`hold` for the length of a block."""
        self.hold(sha256)
        try:
            yield
        finally:
            self.release(sha256)

    @asynccontextmanager
    async def use(self, path: str | None, sha256: str) -> AsyncIterator[Path | None]:
        """The file as `find`, held for the length of the block.

        Raises:
            UnknownImageError: also where the block fails because the upload was removed before it began.
        """
        with self.held(sha256):
            try:
                yield await asyncio.to_thread(self.find, path, sha256)
            except ImageError as error:
                if path is None and sha256 not in self._kept:
                    raise UnknownImageError(
                        "upload_gone", f"the upload {sha256}", "it is no longer here. Upload it again"
                    ) from error
                raise

    async def add(self, sha256: str, chunks: AsyncIterator[bytes]) -> tuple[Path, tuple[int, int]]:
        """Store an upload, which the caller holds. Returns its path and its size (H, W) before EXIF orientation.

        Raises:
            ImageError: the digest of the bytes differs from `sha256`, they are no image, or it has too many pixels.
            UploadTooLargeError: the upload alone exceeds the limit of all uploads.
            UploadsFullError: it does not fit beside the uploads that are held.
        """
        if sha256 in self._kept:
            async for _ in chunks:  # read, so that the connection stays usable
                pass
            return self._upload(sha256), await asyncio.to_thread(self._size_of, self._upload(sha256))
        digest, length = hashlib.sha256(), 0
        descriptor, partial = tempfile.mkstemp(dir=self._folder.name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                async for chunk in chunks:
                    self._reserve(len(chunk), length + len(chunk))
                    length += len(chunk)
                    digest.update(chunk)
                    file.write(chunk)
            if (actual := digest.hexdigest()) != sha256:
                raise ImageError("digest_differs", "the upload", f"its SHA-256 is {actual}, the request says {sha256}")
            # In a thread: the header of a file may have thousands of parts.
            size = await asyncio.to_thread(self._size_of, partial)
            with self._lock:
                os.replace(partial, self._upload(sha256))
                self._kept[sha256] = length
        except BaseException:
            os.unlink(partial)
            raise
        finally:
            with self._lock:
                self._received -= length
        return self._upload(sha256), size

    def _upload(self, sha256: str) -> Path:
        return Path(self._folder.name, sha256)

    def _size_of(self, path: str | Path) -> tuple[int, int]:
        with ImageFile("the upload", ImageFile.read(path).content).opened(self._max_pixels) as image:
            return image.height, image.width

    def _reserve(self, more: int, length: int) -> None:
        """Make room for `more` bytes of an upload that then has `length` bytes."""
        if length > self._upload_bytes:
            raise UploadTooLargeError(
                "upload_too_large", "the upload", f"larger than {self._upload_bytes} bytes, the limit of all uploads"
            )
        with self._lock:
            excess = sum(self._kept.values()) + self._received + more - self._upload_bytes
            for sha256 in [sha256 for sha256 in self._kept if sha256 not in self._holders]:
                if excess <= 0:
                    break
                excess -= self._kept.pop(sha256)
                self._upload(sha256).unlink()
            if excess > 0:
                raise UploadsFullError(
                    "uploads_full",
                    "the uploads",
                    f"{self._upload_bytes} bytes wait for their embeddings, which is the limit. Try again later, or "
                    "start the server with a larger --upload-gb",
                )
            self._received += more
