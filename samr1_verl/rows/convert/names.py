"""Names and ids of a data set: the rules for those that become files, image paths and keys."""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Any, TypeGuard

from samr1_verl import Samr1Error

LONGEST_SPLIT = 100  # bytes; a file's name may have 255, and endings are added
LONGEST_PATH = 4096  # characters; Linux takes no longer path
MOST_SENTENCES = 1000  # of one reference or annotation; the published data sets have about ten at most
_SPLIT = re.compile(r"\w[\w.+-]*")
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80
_repr.maxlist = _repr.maxdict = _repr.maxtuple = 6
_repr.maxlevel = 3


class Flaw(Samr1Error, ValueError):
    """A field of a source record that cannot be used: `where` is its name, `problem` has its value and the remedy."""


def short(value: Any) -> str:
    """A value for a message, about 80 characters. It costs little where lists hold one another a thousand times."""
    try:
        text = _repr.repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def checked_id(value: Any, field: str) -> int | str:
    """An id: a whole number of 64 bits, or text. Raises Flaw with the name of the `field` for all else."""
    whole = isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63
    if whole or _is_text(value):
        return value
    raise Flaw("bad_id", field, f"found {short(value)}, expected a whole number of at most 64 bits, or text")


def checked_text(value: Any, field: str) -> str:
    """Text that UTF-8 can hold. Raises Flaw with the name of the `field` for all else."""
    if _is_text(value):
        return value
    raise Flaw("bad_text", field, f"found {short(value)}, expected text of at most {LONGEST_PATH} characters in UTF-8")


def _is_text(value: Any) -> TypeGuard[str]:
    if not isinstance(value, str) or len(value) > LONGEST_PATH:
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def checked_split(split: Any) -> str:
    """The name of a split, which becomes the name of a file. Raises Flaw where it could become a path.

    Letters, digits, `_`, `.`, `+` and `-`, with a letter, digit or `_` first, and at most LONGEST_SPLIT bytes.
    """
    if not (isinstance(split, str) and _SPLIT.fullmatch(split) and len(split.encode()) <= LONGEST_SPLIT):
        raise Flaw(
            "bad_split",
            "split",
            f"found {short(split)}, expected the name of a file: letters, digits, _ . + -, at most {LONGEST_SPLIT} "
            "bytes. Correct the split in the source",
        )
    return split


def checked_sentences(sentences: Any) -> list[Any]:
    """A list of sentences, or one sentence as such a list. Raises Flaw where there are more than MOST_SENTENCES."""
    listed = sentences if isinstance(sentences, list) else [sentences]
    if len(listed) > MOST_SENTENCES:
        raise Flaw(
            "too_many_sentences",
            "sentences",
            f"{len(listed)} sentences, expected at most {MOST_SENTENCES}. Split the entry",
        )
    return listed


def path_below(folder: Path, name: Any) -> Path:
    """The path of `name` below `folder`, with all links followed. The file need not exist.

    Raises:
        Flaw: it leaves the folder, or is no path.
    """
    if not _is_text(name) or not name or "\0" in name:
        raise Flaw("bad_path", "image", f"found {short(name)}, expected the path of an image below {folder}")
    try:
        root = folder.resolve()
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to one another
        raise _not_followed(name, error) from error
    if not path.is_relative_to(root):
        raise Flaw(
            "outside_folder",
            "image",
            f"{short(name)} leads to {path}, outside {root}, so it is not read. Copy the image into this folder, or "
            "name the folder that holds all images",
        )
    return path


def _not_followed(name: Any, error: Exception) -> Flaw:
    return Flaw("path_not_followed", "image", f"{short(name)} is no path that can be followed ({error})")


def find_image(folder: Path, name: Any) -> Path:
    """The image `name` below `folder`: under its whole name, or without leading folders that do not exist.

    Raises:
        Flaw: the image lies outside the folder, or `name` is no path.
    """
    parts = Path(checked_text(name, "image")).parts
    for start in range(len(parts)):
        candidate = folder.joinpath(*parts[start:])
        try:
            if candidate.is_file():
                return path_below(folder, str(Path(*parts[start:])))
        except OSError as error:
            raise _not_followed(name, error) from error
    return path_below(folder, parts[-1] if parts else name)
