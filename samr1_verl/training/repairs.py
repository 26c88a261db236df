"""Adaptations of verl's functions that have a fault and no hook, on every platform.

- `maybe_fix_3d_position_ids`: the position ids of a batch whose sequences all have the same length;
- `_get_input_embeds` of Qwen2-VL and Qwen2.5-VL: a micro-batch without an image;
- `forward_with_torch_backend` of Qwen2-VL to Qwen3-VL: fused log-probs with a sharded output layer (fused.py);
- `is_trl_available` where verl patches a model: an installed TRL without verl's class.

verl's modules import functions by name. So each function is replaced in the module that defines it and in the modules
that import it, as soon as these are imported. A replacement has the original as `__wrapped__`, for the tests in
tests/training/test_repairs.py, which fail when verl's own function works.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import wrapt
from tensordict import TensorDict

from samr1_verl.training.fused import FAMILIES, with_output_layer_called

_OURS = "repaired_by_samr1"


def register() -> None:
    """Replace the functions, now or when verl imports them. A second call changes nothing."""
    _replace(
        "maybe_fix_3d_position_ids",
        with_equal_lengths_repaired,
        ["verl.utils.tensordict_utils", "verl.workers.engine_workers", "verl.workers.engine.base"],
    )
    _replace("_get_input_embeds", with_text_only_batches_repaired, ["verl.models.transformers.qwen2_vl"])
    _replace("forward_with_torch_backend", with_output_layer_called, list(FAMILIES))
    _replace("is_trl_available", with_value_head_required, ["verl.models.transformers.monkey_patch"])


def _replace(name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], modules: list[str]) -> None:
    def replace(module: ModuleType) -> None:
        function = getattr(module, name)
        if not hasattr(function, _OURS):  # a module that is imported later already gets the replacement
            replacement = wrap(function)
            setattr(replacement, _OURS, True)
            setattr(module, name, replacement)

    for module in modules:
        wrapt.register_post_import_hook(replace, module)


def with_equal_lengths_repaired(fix: Callable[[TensorDict], None]) -> Callable[[TensorDict], None]:
    """Restore the ragged dimension of M-RoPE position ids where all sequences of a batch have the same length.

    The position ids of one sequence are [R, L]: R = 4 rows (text, time, height, width), L tokens. verl sends them
    between processes as a list and joins them with torch.nested, whose ragged dimension is the first one that differs.
    Where none differs it is dimension 1, the rows: values [B * R, L] with offsets 0, R, 2R, ... instead of values
    [R, sum L] with offsets 0, L, 2L, ... verl's function then only renames the dimension, and chunking or unbinding
    fails. With answers of a fixed form this occurs within a few steps; with one row per worker, in every step.
    """

    @functools.wraps(fix)
    def maybe_fix_3d_position_ids(data: TensorDict) -> None:
        position_ids = data.get("position_ids", None)
        if isinstance(position_ids, torch.Tensor) and position_ids.is_nested and position_ids.dim() == 3:
            token_offsets = data["input_ids"].offsets()
            if not _ragged_in_tokens(position_ids, token_offsets):
                data["position_ids"] = _rebuild(position_ids.values(), token_offsets)
        fix(data)

    return maybe_fix_3d_position_ids


def _ragged_in_tokens(position_ids: Any, token_offsets: torch.Tensor) -> bool:
    values, offsets = position_ids.values(), position_ids.offsets()
    return values.shape[-1] == int(token_offsets[-1]) and torch.equal(offsets, token_offsets)


def _rebuild(values: torch.Tensor, token_offsets: torch.Tensor) -> torch.Tensor:
    """A nested tensor [B, R, j] with values [R, B * L], from values [B * R, L] of B sequences of the same length."""
    rows = values.unflatten(0, (len(token_offsets) - 1, -1)).transpose(0, 1).flatten(1)
    return torch.nested.nested_tensor_from_jagged(rows, token_offsets, jagged_dim=2)


def with_text_only_batches_repaired(embed: Callable[..., Any]) -> Callable[..., Any]:
    """Give verl a tensor where transformers 5 returns an output object for the pixels of an empty image.

    verl replaces lost rollouts by rows of text. For a micro-batch of such rows alone it runs the vision tower on an
    empty image, so that every worker has the same gradients to exchange, and calls `.mean()` on the result.
    """

    @functools.wraps(embed)
    def _get_input_embeds(model: Any, *args: Any, **kwargs: Any) -> Any:
        # verl's function reads nothing else of the model.
        parts = {"config": model.config, "get_input_embeddings": model.get_input_embeddings}
        return embed(SimpleNamespace(visual=_TensorVision(model.visual), **parts), *args, **kwargs)

    return _get_input_embeds


class _TensorVision:
    """The vision tower with a tensor as its result."""

    def __init__(self, visual: Any) -> None:
        self._visual, self.dtype = visual, visual.dtype

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        from verl.utils.transformers_compat import unpack_visual_output

        embeddings: torch.Tensor = unpack_visual_output(self._visual(*args, **kwargs))[0]
        return embeddings


def with_value_head_required(available: Callable[[], bool]) -> Callable[[], bool]:
    """Treat a TRL without AutoModelForCausalLMWithValueHead as no TRL, where verl patches a model.

    verl imports this class from every installed TRL, for critics with a value head; from TRL 1.13 on there is none, and
    no actor is made. The recipes have no critic.
    """

    @functools.wraps(available)
    def is_trl_available() -> bool:
        return available() and any(map(_has_value_head, ("trl.experimental.ppo", "trl")))

    return is_trl_available


def _has_value_head(module: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import of trl.experimental warns
        try:
            return hasattr(importlib.import_module(module), "AutoModelForCausalLMWithValueHead")
        except ImportError:
            return False
