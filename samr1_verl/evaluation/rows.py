"""Reading of the rows of an evaluation: all are read and checked before the first question."""

from __future__ import annotations

from pathlib import Path

from samr1_verl.rows.record import DataError, Record, iter_rows, parse_record, resolve_image


def read_rows(file: Path, limit: int | None = None, images: bool = True) -> list[Record]:
    """The first `limit` rows (None: all), with their images as absolute paths.

    Args:
        images: check that every image exists.

    Raises:
        DataError: the file or a row is invalid, an image is missing, or a row has boxes but no masks.
    """
    records: list[Record] = []
    missing: list[str] = []
    for number, row in enumerate(iter_rows(file)):
        if number == limit:
            break
        record = parse_record(row, file, number)
        if record.boxes and not record.masks:
            raise DataError(
                "boxes_without_masks",
                f"{file}: row {number}",
                f"holds {len(record.boxes)} boxes and no mask, expected one mask per object: an evaluation compares "
                "masks. Prepare the data again with masks",
            )
        image = resolve_image(record, file)
        if images and not image.is_file():
            missing.append(f"row {number}: {image}")
        records.append(record.model_copy(update={"image": str(image)}))
    if missing:
        raise DataError(
            "missing_images",
            f"{file}",
            f"the images of {len(missing)} of {len(records)} rows are missing, the first is {missing[0]}. Paths are "
            f"relative to {file.absolute().parent}, or absolute. Copy the images there, or prepare the data again on "
            "this machine",
        )
    return records
