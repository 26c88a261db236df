"""The files a run reads, checked before it starts: rows and their images, the policy, the segmenter's weights.

Used by the preflight of every run and by `samr1 doctor`. Each check yields problems, one string each: the key that
names the file, what was found there, what was expected, and the recipe's command that makes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from omegaconf import DictConfig, ListConfig, OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn

from reward_fns.samr1 import constants_from
from samr1_verl.config import ConfigError, Samr1Config
from samr1_verl.geometry.images import ImageError, open_image, sha256_of
from samr1_verl.rows.ground_truth import RowError
from samr1_verl.config import hub_id_or_folder
from samr1_verl.geometry.masks import MaskError, decode_rle
from samr1_verl.rows.record import DataError, Record, read_table, record_at, resolve_image
from samr1_verl.segmenters import segmenter_problems
from samr1_verl.service.client import service_problems


def check_model(config: DictConfig, remedy: str) -> Iterator[str]:
    """The policy is a folder with weights, or a hub id that can be fetched."""
    key = "actor_rollout_ref.model.path"
    place = hub_id_or_folder(config.actor_rollout_ref.model.path)
    if isinstance(place, str):
        if constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(place, "config.json"), str):
            yield f"{key}: {place} is not in the hub cache and HF_HUB_OFFLINE is set. {remedy}"
    elif not place.is_dir():
        yield f"{key}: no folder {place.absolute()}. {remedy}"
    elif not (place / "config.json").is_file():
        yield f"{key}: {place.absolute()} holds no config.json, so it is no model. {remedy}"
    elif not any([*place.glob("*.safetensors"), *place.glob("*.bin")]):
        yield f"{key}: {place.absolute()} holds no weights (*.safetensors). {remedy}"


def check_data(config: DictConfig, remedy: str) -> Iterator[str]:
    """Every data file is readable, its first row is true, and every image it names is there."""
    if config.data.custom_cls.name != "SegmentationDataset":
        return
    for key in ("data.train_files", "data.val_files"):
        files = OmegaConf.select(config, key)
        files = [files] if isinstance(files, str) else files
        if not isinstance(files, list | ListConfig) or not files:
            yield f"{key} is {files}, expected a path or a list of paths. {remedy}"
            continue
        for file in files:
            try:
                yield from (f"{key}: {problem}" for problem in _data_file(Path(file).expanduser().absolute()))
            except DataError as error:
                yield f"{key}: {error}. {remedy}"


def _data_file(path: Path) -> Iterator[str]:
    table = read_table(path)
    record = record_at(table, 0, path)
    yield from _first_row(path, record)
    images = table.column("image").unique().to_pylist()
    missing = [image for image in images if not (path.parent / image).is_file()]
    if missing:
        yield (
            f"{path}: {len(missing)} of {len(images)} images are missing, the first is {missing[0]}. Paths are "
            f"relative to {path.parent}, or absolute: bring them there, or prepare the data where they are"
        )


def _first_row(path: Path, record: Record) -> Iterator[str]:
    image = resolve_image(record, path)
    if not image.is_file():
        return
    try:
        if (digest := sha256_of(image)) != record.sha256:
            yield (
                f"{path}: row 0: {image} has the SHA-256 {digest}, the row says {record.sha256}: the file was changed "
                "or replaced after the data was prepared. Prepare the data again"
            )
        elif (size := open_image(image).size) != (record.width, record.height):
            yield (
                f"{path}: row 0: {image} is {size[0]}x{size[1]} pixels, the row says {record.width}x{record.height}. "
                "Prepare the data again"
            )
            return  # its masks are of the wrong size as well
        for counts in [*record.masks, *([record.ignore] if record.ignore else [])]:
            decode_rle(counts, (record.height, record.width))
    except ImageError as error:
        yield f"{path}: row 0: {error}"
    except MaskError as error:
        yield f"{path}: row 0: {error}. Prepare the data again"


def uses_segmenter(config: DictConfig) -> bool:
    """Whether the reward is given a segmenter, or samples are kept; a reward that compares boxes needs none."""
    return config.samr1.samples > 0 or "segmenter" in (config.reward.custom_reward_function.get("reward_kwargs") or {})


def check_segmenter(settings: Samr1Config) -> Iterator[str]:
    """The service's packages are there, and the segmenter's backend and weights, unless other machines have them."""
    yield from service_problems(settings.service)
    if settings.service.mode == "http":
        return
    for problem in segmenter_problems(settings.segmenter):
        yield f"{problem}. {settings.prepare.segmenter}"


def check_reward(config: DictConfig, settings: Samr1Config) -> Iterator[str]:
    """The recipe's constants are ones that SAM-R1's reward takes; other rewards of ours take their keyword arguments
    and the first row. A reward from elsewhere checks its own.
    """
    path = str(config.reward.custom_reward_function.path)
    if path == "pkg://reward_fns.samr1":
        try:
            constants_from(settings.reward or {})
        except ConfigError as error:
            yield from str(error).splitlines()
    elif path.startswith("pkg://reward_fns."):
        try:
            asyncio.run(_score_nothing(config))
        except (ConfigError, RowError) as error:
            yield from str(error).splitlines()


async def _score_nothing(config: DictConfig) -> None:
    """The reward of an empty response to the first training row: it reads all there is and asks no segmenter."""
    files = config.data.train_files
    try:
        file = Path(files if isinstance(files, str) else files[0]).expanduser().absolute()
        record = record_at(read_table(file), 0, file)
    except (DataError, IndexError, TypeError):
        return  # check_data has told
    size = config.samr1.policy_size or (record.width, record.height)
    extra = {"image": str(resolve_image(record, file)), "sha256": record.sha256, "policy_size": list(size), "index": 0}
    await get_custom_reward_fn(config)(
        record.data_source, "", record.ground_truth(), {**extra, "frame": config.samr1.frame}
    )
