"""Checks of the files that a run reads, before it starts: rows and images, the policy, the segmenter's weights.

The preflight of every run and `samr1 doctor` use them. Each check yields one message per problem: the key that names
the file, the fault, and the recipe's command that makes the file (`remedy`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from omegaconf import DictConfig, ListConfig, OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn

from samr1_verl.config import ConfigError, Samr1Config, hub_id_or_folder, keep_rows_config
from samr1_verl.geometry.images import ImageError, ImageFile
from samr1_verl.geometry.masks import MaskError, decode_rle
from samr1_verl.prompts.templates import load_prompt
from samr1_verl.rows.ground_truth import RowError
from samr1_verl.rows.measured import Bounds, kept_rows
from samr1_verl.rows.record import DataError, Record, read_table, record_at, resolve_image
from samr1_verl.segmenters import segmenter_problems
from samr1_verl.service.client import service_problems


def check_model(config: DictConfig, remedy: str) -> Iterator[str]:
    """The policy is a folder with weights, or a hub id that can be downloaded."""
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
    """Every data file is readable, its first row fits its image and masks, and every image it names exists."""
    if config.data.custom_cls.name != "SegmentationDataset":
        return
    for key in ("data.train_files", "data.val_files"):
        files = OmegaConf.select(config, key)
        files = [files] if isinstance(files, str) else files
        if not isinstance(files, list | ListConfig) or not files:
            yield f"{key} is {files}, expected a path or a list of paths. {remedy}"
            continue
        bounds = keep_rows_config(config.data) if key == "data.train_files" else {}
        for file in files:
            try:
                yield from (f"{key}: {problem}" for problem in _data_file(Path(file).expanduser().absolute(), bounds))
            except DataError as error:
                yield f"{key}: {error}. {remedy}"


def _data_file(path: Path, bounds: Bounds) -> Iterator[str]:
    table = read_table(path)
    try:
        kept_rows(table, bounds, path)
    except DataError as error:
        yield f"{error}, or set samr1.keep_rows=null"
    record = record_at(table, 0, path)
    yield from _first_row(path, record)
    images = table.column("image").unique().to_pylist()
    missing = [image for image in images if not (path.parent / image).is_file()]
    if missing:
        yield (
            f"{path}: {len(missing)} of {len(images)} images are missing, the first is {missing[0]}. Paths are "
            f"relative to {path.parent}, or absolute. Copy the images there, or prepare the data again on this machine"
        )


def _first_row(path: Path, record: Record) -> Iterator[str]:
    image = resolve_image(record, path)
    if not image.is_file():
        return
    try:
        if (file := ImageFile.read(image)).sha256 != record.sha256:
            yield (
                f"{path}: row 0: {image} has the SHA-256 {file.sha256}, the row says {record.sha256}: the file was "
                "changed or replaced after the data was prepared. Prepare the data again"
            )
        elif (size := file.rgb().size) != (record.width, record.height):
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


def check_prompt(settings: Samr1Config) -> Iterator[str]:
    """`samr1.prompt` is the name of a template, or a file that can be rendered."""
    try:
        load_prompt(settings.prompt)
    except ConfigError as error:
        yield str(error)


def uses_segmenter(config: DictConfig) -> bool:
    """Whether the run needs the segmenter, for its samples or for a reward that compares masks."""
    return config.samr1.samples > 0 or compares_masks(config)


def compares_masks(config: DictConfig) -> bool:
    """Whether the reward or one of its terms compares masks; for a user's own reward: whether it gets a segmenter."""
    if (module := _own_reward(config)) is None:
        return "segmenter" in (config.reward.custom_reward_function.get("reward_kwargs") or {})
    try:
        return module.ARGUMENTS.read(config.samr1.reward).compares_masks
    except ConfigError:
        return False  # check_reward reports it


def _own_reward(config: DictConfig) -> Any | None:
    """The module of a reward of ours, loaded by its path, as verl does; None: a user's own reward."""
    path = str(config.reward.custom_reward_function.path)
    return import_module(path.removeprefix("pkg://")) if path.startswith("pkg://reward_fns.") else None


def check_segmenter(settings: Samr1Config) -> Iterator[str]:
    """The service's packages, the backend and the weights exist; with the mode http only the packages are checked."""
    yield from service_problems(settings.segmenter.service)
    if settings.segmenter.service.mode == "http":
        return
    for problem in segmenter_problems(settings.segmenter):
        yield f"{problem}. {settings.prepare.segmenter}"


def check_reward(config: DictConfig, sound_rows: bool = True) -> Iterator[str]:
    """A reward of ours accepts `samr1.reward` and, where the rows are valid, the first training row.

    A user's own reward is not checked.
    """
    try:
        if (module := _own_reward(config)) is not None:
            module.ARGUMENTS.read(config.samr1.reward)
            if sound_rows and (result := asyncio.run(_score_nothing(config))) is not None:
                yield from _filter_metric(config, result)
    except (ConfigError, RowError) as error:
        yield from str(error).splitlines()


def _filter_metric(config: DictConfig, result: Mapping[str, float]) -> Iterator[str]:
    """`algorithm.filter_groups.metric` is the reward or a key of its dict; verl looks it up after the first group."""
    groups = config.algorithm.filter_groups
    if groups.enable and groups.metric not in ("reward", *result):
        yield (
            f"algorithm.filter_groups.metric is {groups.metric}, expected reward or a key of the reward: "
            f"{', '.join(sorted(result))}"
        )


async def _score_nothing(config: DictConfig) -> dict[str, float] | None:
    """The score of an empty response to the first training row: it reads the whole row and needs no segmenter.

    None: there is no such row.
    """
    files = config.data.train_files
    try:
        file = Path(files if isinstance(files, str) else files[0]).expanduser().absolute()
        record = record_at(read_table(file), 0, file)
    except (DataError, IndexError, TypeError):
        return None  # check_data reports it
    size = config.samr1.policy_size or (record.width, record.height)
    extra = {"image": str(resolve_image(record, file)), "sha256": record.sha256, "policy_size": list(size), "index": 0}
    result: dict[str, float] = await get_custom_reward_fn(config)(
        record.data_source, "", record.ground_truth(), {**extra, "frame": config.samr1.frame}
    )
    return result
