"""The reward of a recipe outside a training: loaded by its path, as verl loads it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from samr1_verl.config import ConfigError

KEY = "reward.custom_reward_function"


class RecipeReward:
    """Scores responses as a training with the recipe does.

    Args:
        section: the values of `reward.custom_reward_function`: `path`, `name` and `reward_kwargs`.

    Raises:
        ConfigError: the recipe names no reward, or it cannot be loaded.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        from verl.utils.import_utils import load_extern_object

        if not section.get("path"):
            raise ConfigError(f"{KEY}.path: found {section.get('path')!r}, expected the path of a reward function")
        try:
            self._score = load_extern_object(section["path"], section["name"])
        except (ImportError, FileNotFoundError, RuntimeError, AttributeError) as error:
            raise ConfigError(f"{KEY}: {section['path']}, {section['name']}: cannot be loaded: {error}") from error
        self._arguments = dict(section.get("reward_kwargs") or {})

    async def __call__(self, item: Mapping[str, Any], response: str) -> float:
        """The reward of a response.

        Args:
            item: an item of SegmentationDataset, with `data_source`, `reward_model` and `extra_info`.
            response: the text, without special tokens.

        Raises:
            ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
        """
        row = (item["data_source"], response, item["reward_model"]["ground_truth"], item["extra_info"])
        result = self._score(*row, **self._arguments)
        result = await result if inspect.isawaitable(result) else result
        return float(result["score"] if isinstance(result, Mapping) else result)
