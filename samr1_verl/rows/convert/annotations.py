"""Annotations of published data sets become masks in the original frame, and masks become rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from samr1_verl.geometry.frames import turn_box, turn_mask
from samr1_verl.geometry.images import ImageError, ImageFile
from samr1_verl.geometry.masks import MaskError, box_of, decode_rle, encode_rle, inscribed_points
from samr1_verl.rows.convert.names import Flaw, short
from samr1_verl.rows.convert.options import Exif
from samr1_verl.rows.record import Record

LONGEST_SENTENCE = 2000  # characters; the longest of ReasonSeg has a few hundred, and a sentence must fit a prompt
_CORNERS = 3  # pycocotools would read the four numbers of two corners as a box
OUTLINE = 1 << 21  # pixels around all polygons of an object; pycocotools takes 100 bytes for each of them


@dataclass(frozen=True)
class Picture:
    """An image file that was decoded completely.

    `size_wh` is its (W, H) in the original frame, `stored_wh` its (W, H) before the EXIF `orientation` (1 to 8).
    """

    path: Path
    sha256: str
    size_wh: tuple[int, int]
    stored_wh: tuple[int, int]
    orientation: int

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.size_wh[1], self.size_wh[0]

    def turn(self, drawn_wh: tuple[int, int], exif: Exif) -> int:
        """The EXIF orientation that annotations drawn on (W, H) pixels still need; 1: none.

        Raises:
            Flaw: the annotations are for an image of another size, or their size fits both the stored pixels and
                the image after its EXIF orientation.
        """
        fits = {Exif.applied: drawn_wh == self.size_wh, Exif.stored: drawn_wh == self.stored_wh}
        if exif is Exif.auto and self.orientation != 1 and all(fits.values()):
            raise Flaw(
                "unknown_orientation",
                "orientation",
                f"{self.path} has the EXIF orientation {self.orientation}, and its size does not tell whether the "
                "annotation was drawn before or after it. Use --exif applied (as viewers show it) or --exif stored",
            )
        by_size = Exif.stored if fits[Exif.stored] else Exif.applied
        frame = by_size if exif is Exif.auto else exif
        if not fits[frame]:
            raise Flaw(
                "annotation_size_differs",
                "size",
                f"the annotation is for an image of {_by(drawn_wh)} pixels, {self.path} has "
                f"{_by(self.size_wh if frame is Exif.applied else self.stored_wh)}. It is for another image, or the "
                "image was resized: get the image that the data set was made with",
            )
        return self.orientation if frame is Exif.stored else 1


def _by(size_wh: tuple[int, int]) -> str:
    return f"{size_wh[0]}x{size_wh[1]}"


def open_picture(path: Path) -> Picture:
    """Decode an image file and compute its digest. Raises Flaw where the file is missing, incomplete or no image."""
    try:
        file = ImageFile.read(path)
        orientation, stored_wh = file.orientation()
        return Picture(path, file.sha256, file.rgb().size, stored_wh, orientation)
    except ImageError as error:
        raise Flaw("unusable_image", "image", f"{error}") from error


class NoPixel(Flaw):
    """A segmentation that can be read and covers no pixel."""


@dataclass(frozen=True)
class Shape:
    """A mask, HxW bool on the image that it was drawn on, and a note for each of its parts that covers no pixel."""

    mask: np.ndarray
    notes: tuple[str, ...] = ()


def segmentation_mask(segmentation: Any, drawn_wh: tuple[int, int]) -> Shape:
    """The mask of a COCO segmentation on the image that it was drawn on.

    Args:
        segmentation: polygons [[x, y, x, y, …], …], which are united, or one flat polygon, or an RLE
            {"size": [H, W], "counts": a list of run lengths, or compressed text}.
        drawn_wh: (W, H) of the image in pixels.

    Raises:
        Flaw: the segmentation has another form, or is for an image of another size.
        NoPixel: it covers no pixel.
    """
    if isinstance(segmentation, dict):
        shape = Shape(_rle_mask(segmentation, drawn_wh))
    elif isinstance(segmentation, list | tuple) and segmentation:
        polygons = [segmentation] if isinstance(segmentation[0], int | float) else segmentation
        shape = _polygon_mask(polygons, drawn_wh)
    else:
        raise Flaw("bad_segmentation", "segmentation", f"found {short(segmentation)}, expected polygons or an RLE")
    if not shape.mask.any():
        notes = f" ({'; '.join(shape.notes)})" if shape.notes else ""
        raise NoPixel("no_pixel", "segmentation", f"it covers no pixel{notes}. Correct or remove the annotation")
    return shape


def _polygon_mask(polygons: Sequence[Any], drawn_wh: tuple[int, int]) -> Shape:
    width, height = drawn_wh
    notes: list[str] = []
    painted: list[dict[str, Any]] = []
    outline = 0.0
    for number, polygon in enumerate(polygons):
        try:
            corners = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            corners = np.empty((0, 0))
        if corners.ndim != 1 or corners.size % 2 or not np.isfinite(corners).all():
            raise Flaw("bad_polygon", "segmentation", f"polygon {number} is {short(polygon)}, expected [x, y, x, y, …]")
        x, y = corners[0::2], corners[1::2]
        if corners.size and (np.abs(x - width / 2).max() > 1.5 * width or np.abs(y - height / 2).max() > 1.5 * height):
            raise Flaw(
                "far_outside",
                "segmentation",
                f"polygon {number} reaches from ({x.min():g}, {y.min():g}) to ({x.max():g}, {y.max():g}), far outside "
                f"the image of {_by(drawn_wh)} pixels: it belongs to another image, or is scaled",
            )
        outline += sum(np.abs(np.diff(way, append=way[:1])).sum() for way in (x, y))
        if outline > max(OUTLINE, 4 * width * height):
            most = max(OUTLINE, 4 * width * height)
            raise Flaw("outline_too_long", "segmentation", f"its outline has more than {most} pixels")
        # Painted pixels decide, not the signed area: it is 0 for a polygon that crosses itself symmetrically.
        rle = coco_mask.frPyObjects([corners.tolist()], height, width)[0] if len(x) >= _CORNERS else None
        if rle is None or not coco_mask.area(rle):
            notes.append(f"polygon {number} of {len(polygons)} covers no pixel: {short(polygon)}")
        else:
            painted.append(rle)
    if not painted:
        return Shape(np.zeros((height, width), dtype=bool), tuple(notes))
    united = coco_mask.merge(painted)
    return Shape(decode_rle(united["counts"].decode("ascii"), (height, width)), tuple(notes))


def _rle_mask(rle: dict, drawn_wh: tuple[int, int]) -> np.ndarray:
    width, height = drawn_wh
    counts, size = rle.get("counts"), rle.get("size")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise Flaw(
            "other_size", "segmentation", f"the RLE's size is {size}, expected [{height}, {width}] (H, W of the image)"
        )
    if isinstance(counts, str | bytes):
        try:
            return decode_rle(counts if isinstance(counts, str) else counts.decode("ascii"), (height, width))
        except (MaskError, UnicodeDecodeError) as error:
            raise Flaw("undecodable_rle", "segmentation", f"{error}") from error
    if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
        raise Flaw(
            "bad_counts",
            "segmentation",
            f"the RLE's counts are {short(counts)}, expected run lengths or compressed text",
        )
    if sum(counts) != height * width:
        raise Flaw("rle_pixels_differ", "segmentation", f"the RLE has {sum(counts)} pixels, the image {height * width}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


@dataclass(frozen=True)
class Truth:
    """An object in the original frame: its compressed COCO RLE counts, box [x1, y1, x2, y2] and points [[x, y], …]."""

    rle: str
    box: list[float]
    points: list[list[float]]


def truth_of(mask_drawn: np.ndarray, orientation: int) -> Truth:
    """The object of a non-empty mask, HxW bool, after the EXIF `orientation` is applied to it (1: nothing changes)."""
    mask = turn_mask(mask_drawn, orientation)
    return Truth(encode_rle(mask), box_of(mask), inscribed_points(mask))


def box_in_image(box_xyxy: Sequence[float], picture: Picture, orientation: int) -> list[float]:
    """A box [x1, y1, x2, y2] after the EXIF `orientation` is applied to it: pixels of the original frame.

    Raises:
        Flaw: it does not hold four numbers, has no area or leaves the image.
    """
    box = np.asarray(box_xyxy, dtype=np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise Flaw("bad_box", "box", f"found {short(box_xyxy)}, expected four numbers")
    if box[2] <= box[0] or box[3] <= box[1]:
        raise Flaw(
            "box_without_area",
            "box",
            f"{box.tolist()} has no area, expected x1 < x2 and y1 < y2. Is it x, y, w, h? Then use --box-format xywh",
        )
    box = turn_box(box, picture.stored_wh, orientation)
    width, height = picture.size_wh
    slack = 1.0  # annotation tools round
    if box.min() < -slack or box[2] > width + slack or box[3] > height + slack:
        raise Flaw(
            "box_outside_image",
            "box",
            f"{box.tolist()} leaves the image of {_by(picture.size_wh)} pixels. Wrong --box-format?",
        )
    return np.clip(box, 0, [width, height, width, height]).tolist()


def checked_sentence(sentence: Any) -> str:
    """The sentence without white space around it. Raises Flaw where it is empty, too long or not text."""
    if not isinstance(sentence, str):
        raise Flaw("sentence_not_text", "sentence", f"found {short(sentence)}, expected text")
    text = sentence.strip()
    if not text:
        raise Flaw("empty_sentence", "sentence", f"found {short(sentence)}, expected a sentence. Correct or remove it")
    if len(text) > LONGEST_SENTENCE:
        raise Flaw(
            "sentence_too_long",
            "sentence",
            f"it has {len(text)} characters, expected at most {LONGEST_SENTENCE}; it begins {text[:60]!r}. Shorten it",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Flaw(
            "sentence_not_utf8", "sentence", f"{short(sentence)} is not UTF-8. Correct its encoding in the source"
        ) from error
    return text


def make_record(
    *,
    data_source: str,
    sentence: Any,
    picture: Picture,
    folder: Path,
    truths: Sequence[Truth] = (),
    boxes: Sequence[list[float]] = (),
    ignore: str | None = None,
    category: str = "",
    source: dict[str, Any],
) -> Record:
    """A row.

    Args:
        folder: folder of the parquet file. Images below it are named relative to it, others by their absolute path.
        truths: objects with masks.
        boxes: boxes [x1, y1, x2, y2], original frame, of a row without masks.
        ignore: compressed COCO RLE counts of the pixels that do not count, or None.
        source: ids in the source data set.

    Raises:
        Flaw: the sentence cannot be used.
    """
    return Record(
        data_source=data_source,
        sentence=checked_sentence(sentence),
        image=image_name(picture.path, folder),
        sha256=picture.sha256,
        height=picture.size_wh[1],
        width=picture.size_wh[0],
        masks=[truth.rle for truth in truths],
        ignore=ignore,
        boxes=[truth.box for truth in truths] or list(boxes),
        points=[truth.points for truth in truths],
        category=category,
        source={key: str(value) for key, value in source.items()},
    )


def image_name(path: Path, folder: Path) -> str:
    """Path by which a row in `folder` names its image: relative where the image lies below the folder, else absolute.

    A folder with relative names can be moved as a whole.
    """
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
