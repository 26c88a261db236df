"""Rows as other trainers read them: a JSONL file, and the images in the size that the policy sees.

Each line has what the trainer's own loader wants, and what a reward of reward_fns receives: `data_source`,
`ground_truth` and `extra_info`, as in verl. The images are PNG files of the policy's size, so that the trainer's
processor does not resize them; `extra_info.image` stays the original file, for the segmenter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from samr1_verl.geometry.images import ImageError, ImageFile
from samr1_verl.prompts.policy_image import policy_image
from samr1_verl.prompts.questions import Questions
from samr1_verl.prompts.templates import SentenceError
from samr1_verl.rows.files import complete
from samr1_verl.rows.parallel import ordered_map
from samr1_verl.rows.record import DataError, Record, count_rows, iter_rows, parse_record, resolve_image

Trainer = Literal["verl", "trl", "verifiers", "swift"]
Item = Mapping[str, Any]


def export(
    file: Path, folder: Path, trainer: Trainer, questions: Questions, progress: Callable[[int, int], None]
) -> Path:
    """Write rows.jsonl and images/ into `folder`, on all cores. Images that are there already are kept.

    Args:
        file: parquet file of rows.
        questions: makes the items.
        progress: receives the number of written rows and of all rows.

    Returns:
        The path of rows.jsonl. It appears when it is complete.

    Raises:
        DataError: the file or a row is invalid, or an image cannot be shown; the message names the row.
    """
    images, total = folder.absolute() / "images", count_rows(file)
    images.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    with complete(path) as part, part.open("w", encoding="utf-8") as lines:
        made = ordered_map(partial(_line, file=file, images=images, trainer=trainer), _items(file, questions))
        for done, line in enumerate(made, start=1):
            lines.write(line)
            progress(done, total)
    return path


def _items(file: Path, questions: Questions) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(iter_rows(file)):
        record: Record = parse_record(row, file, index)
        try:
            yield questions.item(record, resolve_image(record, file), index)
        except (ImageError, SentenceError) as error:
            raise DataError.within(f"{file}: row {index}", error) from error


def _line(item: Item, file: Path, images: Path, trainer: Trainer) -> str:
    extra = item["extra_info"]
    width, height = extra["policy_size"]
    shown = images / f"{extra['sha256']}.{width}x{height}.png"
    try:
        if not shown.exists():
            _write_image(Path(extra["image"]), extra["sha256"], (width, height), shown)
    except ImageError as error:
        raise DataError.within(f"{file}: row {extra['index']}", error) from error
    return json.dumps(FORMATS[trainer](item, str(shown))) + "\n"


def _write_image(source: Path, sha256: str, policy_wh: tuple[int, int], target: Path) -> None:
    image = ImageFile.read(source)
    if image.sha256 != sha256:
        raise ImageError(
            "digest_differs",
            f"{source}",
            f"has the digest {image.sha256}, expected {sha256}: the file changed since the row was made. Restore it, "
            "or prepare the data again",
        )
    with complete(target) as part:
        policy_image(image, policy_wh).save(part, "PNG")


def for_reward(item: Item) -> dict[str, Any]:
    """The columns that every reward receives: data_source, ground_truth and extra_info."""
    return {
        "data_source": item["data_source"],
        "ground_truth": item["reward_model"]["ground_truth"],
        "extra_info": item["extra_info"],
    }


def question(item: Item) -> str:
    """The text of the prompt, without the image that stands before it."""
    text: str = item["raw_prompt"][0]["content"][1]["text"]
    return text


def verl_row(item: Item, image: str) -> dict[str, Any]:
    """A row for verl's own data set, which replaces <image> by the image."""
    width, height = item["extra_info"]["policy_size"]
    return {
        "prompt": [{"role": "user", "content": f"<image>{question(item)}"}],
        "images": [{"image": image, "resized_width": width, "resized_height": height}],
        **{key: item[key] for key in ("data_source", "reward_model", "extra_info")},
    }


def trl_row(item: Item, image: str) -> dict[str, Any]:
    """A row for TRL's GRPOTrainer, which puts `image` before the text. `image` is to be cast to datasets.Image."""
    return {"prompt": [{"role": "user", "content": question(item)}], "image": image, **for_reward(item)}


def verifiers_row(item: Item, image: str) -> dict[str, Any]:
    """A row for the taskset of reward_fns/verifiers.py: OpenAI's chat messages, with the image as a file:// URL."""
    shown = {"type": "image_url", "image_url": {"url": Path(image).as_uri()}}
    content = [shown, {"type": "text", "text": question(item)}]
    return {"prompt": [{"role": "user", "content": content}], **for_reward(item)}


def swift_row(item: Item, image: str) -> dict[str, Any]:
    """A row for ms-swift, which replaces <image> by the image."""
    messages = [{"role": "user", "content": f"<image>{question(item)}"}]
    return {"messages": messages, "images": [image], **for_reward(item)}


FORMATS: dict[Trainer, Callable[[Item, str], dict[str, Any]]] = {
    "verl": verl_row,
    "trl": trl_row,
    "verifiers": verifiers_row,
    "swift": swift_row,
}
