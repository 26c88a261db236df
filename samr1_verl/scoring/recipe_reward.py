"""The reward of a recipe outside a training: loaded by its path, as verl loads it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from samr1_verl.config import ConfigError, SegmenterConfig, reward_config
from samr1_verl.scoring.turns import TURNS, turns_in

PACKAGE = "pkg://"  # of a path that names a module
KEY = "reward.custom_reward_function"
SAM_R1 = (0.5, 0.7, 0.8)  # thresholds of the paper's reward


class RecipeReward:
    """Scores responses as a training with the recipe does.

    Args:
        section: the values of `reward.custom_reward_function`: `path`, `name` and `reward_kwargs`.

    Raises:
        ConfigError: the recipe names no reward, it cannot be loaded, or it compares an answer with earlier answers, so
            that no answer has a reward of its own.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        if not section.get("path"):
            raise ConfigError(
                "no_reward_path",
                f"{KEY}.path",
                f"found {section.get('path')!r}, expected the path of a reward function",
            )
        try:
            self._score = _loaded(section["path"], section["name"])
        except (ImportError, FileNotFoundError, RuntimeError, AttributeError) as error:
            raise ConfigError(
                "unloadable_reward", f"{KEY}: {section['path']}, {section['name']}", f"cannot be loaded: {error}"
            ) from error
        self._arguments = dict(section.get("reward_kwargs") or {})
        if isinstance(reward := self._arguments.get("reward"), Mapping) and reward.get("window") is not None:
            raise ConfigError(
                "reward_ranks_answers",
                "samr1.reward.window",
                f"found {reward['window']!r}, expected null: this reward ranks an answer among the training's earlier "
                "ones, so no answer has a reward of its own. Name another reward with "
                f"--set {KEY}.path=… and --set samr1.reward.window=null",
            )
        self._named = {"path": section["path"], "name": section["name"]}

    def identity(self) -> dict[str, Any]:
        """Path, name and arguments of the function, in JSON values; the place of the segmenter changes no reward."""
        arguments = {
            name: value.model_dump(mode="json", exclude={"service"}) if isinstance(value, SegmenterConfig) else value
            for name, value in self._arguments.items()
        }
        return {**self._named, "arguments": arguments}

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The mask IoUs of the reward's tiers, ascending; of a reward without `samr1.reward.thresholds`: SAM-R1's."""
        tiers = reward_config(self._arguments.get("reward")).tiers
        return tuple(sorted(threshold for threshold, _ in tiers)) if tiers else SAM_R1

    async def __call__(self, item: Mapping[str, Any], response: str) -> float:
        """The reward of a response. Arguments and errors as for `scores`."""
        return (await self.scores(item, response))["score"]

    async def scores(self, item: Mapping[str, Any], response: str) -> dict[str, float]:
        """The reward of a response under `score`, and its other keys, as `compute_score` returns them.

        Args:
            item: an item of SegmentationDataset, with `data_source`, `reward_model` and `extra_info`.
            response: the text, without special tokens; a `turns.Response` has the texts of all turns, which the reward
                receives in `extra_info.turns`.

        Raises:
            ConfigError: as `reward_fns.samr1.compute_score`, or the result is no finite number.
            RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
        """
        turns, extra = turns_in(response), item["extra_info"]
        extra = extra if len(turns) == 1 else {**extra, TURNS: list(turns)}
        row = (item["data_source"], str(response), item["reward_model"]["ground_truth"], extra)
        result = self._score(*row, **self._arguments)
        result = await result if inspect.isawaitable(result) else result
        scores = {name: float(value) for name, value in result.items()} if isinstance(result, Mapping) else {}
        score = scores.setdefault("score", math.nan) if scores else float(result)
        if not math.isfinite(score):
            raise ConfigError(
                "score_not_finite",
                f"{KEY}: {self._named['path']}, {self._named['name']}",
                f"found the score {score} for the answer {response[:200]!r}, expected a finite number. Correct the "
                "reward",
            )
        return scores or {"score": score}


def _loaded(path: str, name: str) -> Any:
    if path.startswith(PACKAGE):  # without the seconds that an import of verl takes
        return getattr(import_module(path.removeprefix(PACKAGE)), name)
    from verl.utils.import_utils import load_extern_object

    return load_extern_object(path, name)
