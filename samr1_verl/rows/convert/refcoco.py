"""RefCOCO, RefCOCO+ and RefCOCOg as their authors ship them (zip files of the REFER toolkit), converted to rows.

The folder of annotations holds instances.json and refs(unc).p, refs(umd).p or refs(google).p. Each split becomes a
parquet file, each sentence a row. A sample also writes train.sample.json, the list of its sentences.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from samr1_verl.geometry.files import open_regular
from samr1_verl.rows.convert.options import Exif, RunOptions
from samr1_verl.rows.convert.pipeline import Outcome
from samr1_verl.rows.convert.referring import Sample, convert_splits, refs_of
from samr1_verl.rows.convert.referring_rows import Files
from samr1_verl.rows.record import DataError

LARGEST = 1 << 28  # bytes of a pickle; the published ones have 60 MB at most
MOST_PARTS = 5_000_000  # lists and dictionaries; the published ones have less than a million. Each takes 64 bytes
# Exceptions that Python raises for bytes that are not a pickle, or only half of one.
_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OverflowError,
    MemoryError,
)
_REFUSED = ("BYTEARRAY8", "EMPTY_SET", "ADDITEMS", "FROZENSET", "NEXT_BUFFER", "READONLY_BUFFER")
_COUNTED = ("MARK", "EMPTY_LIST", "EMPTY_DICT", "TUPLE1", "TUPLE2", "TUPLE3")


def _count(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def counted(unpickler: Any) -> None:
        unpickler.parts += 1
        if unpickler.parts > MOST_PARTS:
            raise pickle.UnpicklingError(f"more than {MOST_PARTS:,} lists and dictionaries")
        load(unpickler)

    return counted


def _plain_operations() -> dict[int, Callable[[Any], None]]:
    operations = dict(pickle._Unpickler.dispatch)
    for name in _REFUSED:
        del operations[getattr(pickle, name)[0]]
    for name in _COUNTED:
        code = getattr(pickle, name)[0]
        operations[code] = _count(operations[code])
    return operations


class PlainUnpickler(pickle._Unpickler):
    """Reads lists, dictionaries, text and numbers. It refuses a pickle that would import or call anything.

    Python's own reader in Python, because the one in C takes 32 GB for the five bytes that name a large place.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = _plain_operations()
    parts = 0

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}; only plain lists, dictionaries, text and numbers are allowed"
        )


def read_refs(path: Path) -> Iterator[dict]:
    """The references of a pickle. A pickle is one object: all references are in memory at first.

    Raises:
        DataError: the file is broken, or holds anything but plain values.
    """
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise pickle.UnpicklingError(f"more than {LARGEST:,} bytes")
        # Python 2 wrote them: its byte strings are text, and wrong bytes must not stop the other sentences.
        refs = PlainUnpickler(io.BytesIO(content), encoding="utf-8", errors="surrogateescape").load()
    except _BROKEN as error:
        reason = f"unknown operation {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            "refused_pickle", f"{path}", f"refused ({reason}). Download it again from the data set's authors"
        ) from error
    if not isinstance(refs, list):
        raise DataError("not_a_list", f"{path}", f"holds a {type(refs).__name__}, expected a list of references")
    refs.reverse()
    while refs:
        yield refs.pop()


def convert_refcoco(
    annotations: Path,
    images: Path,
    out: Path,
    split_by: str,
    splits: Sequence[str],
    sample: Sample | None,
    exif: Exif,
    run: RunOptions,
) -> list[Outcome]:
    """Write OUT/SPLIT.parquet for each of `splits` (empty: all). The rows' data_source is the name of the folder.

    Args:
        annotations: folder with refs(SPLIT_BY).p and instances.json.
        images: folder of COCO's train2014 images.

    Raises:
        DataError: as convert_splits, or there is no refs(SPLIT_BY).p.
    """
    refs = annotations / f"refs({split_by}).p"
    if not refs.is_file():
        present = ", ".join(sorted(path.name for path in annotations.glob("refs(*).p"))) or "none"
        raise DataError(
            "no_such_file",
            f"{refs}",
            f"no such file; references in this folder: {present}. Correct --annotations or --split-by",
        )
    files = Files(annotations.resolve().name, refs, annotations / "instances.json", images)
    fill = refs_of(lambda: read_refs(refs), lambda ref: [ref["ann_id"]])
    return convert_splits(files, fill, out, splits, sample, exif, run)
