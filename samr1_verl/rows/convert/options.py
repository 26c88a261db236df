"""Options that the commands and the converters share. Every `samr1` command imports this file: it stays light."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class Exif(str, enum.Enum):
    """The image that annotations were drawn on, where the image file has an EXIF orientation."""

    auto = "auto"  # the annotation's size tells it; an error where both images have this size
    applied = "applied"  # the image after its EXIF orientation, as viewers show it
    stored = "stored"  # the pixels as the file stores them


class BoxFormat(str, enum.Enum):
    """The meaning of a box's four numbers."""

    xyxy = "xyxy"  # left, top, right, bottom
    xywh = "xywh"  # left, top, width, height


class Watcher:
    """Receives the progress of a conversion. This class ignores it; the command line has one that prints it."""

    def resumed(self, folder: Path) -> None:
        """The work folder holds parts of an interrupted run of the same command, and they are used."""

    @contextmanager
    def file(self, name: str, total: int | None) -> Iterator[Callable[[], None]]:
        """Surrounds the conversion to one file. The function is called after each of `total` jobs (None: unknown)."""
        yield lambda: None


SILENT = Watcher()


@dataclass(frozen=True)
class RunOptions:
    """How a conversion runs. None of these options changes a row.

    `strict`: stop at the first problem and write nothing. `workers`: number of processes; 0: one per core.
    """

    strict: bool = False
    workers: int = 0
    watcher: Watcher = SILENT
