"""Two functions of verl that go wrong on the CPU path and have no hook: what replaces them, and why.

verl's modules import both by name, so each is replaced where it is defined as soon as that module is imported, and in
the modules that bind it. Each replacement keeps the original as `__wrapped__`, for the test that fails when verl's own
works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import wrapt
from tensordict import TensorDict


def register() -> None:
    """Replace both functions, now or when verl imports them."""
    _replace("initialize_global_process_group_ray", with_one_gloo_backend, ["verl.utils.distributed"])
    _replace(
        "maybe_fix_3d_position_ids",
        with_equal_lengths_repaired,
        ["verl.utils.tensordict_utils", "verl.workers.engine_workers", "verl.workers.engine.base"],
    )


def _replace(name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], modules: list[str]) -> None:
    def replace(module: ModuleType) -> None:
        function = getattr(module, name)
        if not hasattr(function, "__wrapped__"):  # a module imported later binds what was replaced already
            setattr(module, name, wrap(function))

    for module in modules:
        wrapt.register_post_import_hook(replace, module)


def with_one_gloo_backend(initialize: Callable[..., None]) -> Callable[..., None]:
    """verl joins "cpu:gloo" and "<device>:<backend>"; with the CPU as device torch refuses the duplicate."""

    @functools.wraps(initialize)
    def initialize_global_process_group_ray(timeout_second: int | None = None, backend: str | None = None) -> None:
        initialize(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    return initialize_global_process_group_ray


def with_equal_lengths_repaired(fix: Callable[[TensorDict], None]) -> Callable[[TensorDict], None]:
    """Give a worker's M-RoPE position ids their ragged dimension back when all sequences of a batch are equally long.

    The position ids of one sequence are [R, L]: R = 4 rows (text, time, height, width), L tokens. Between processes
    they travel as a list and are joined by torch.nested, which takes the first dimension that differs as the ragged
    one. When none differs it takes dimension 1, the rows: values [B * R, L] with offsets 0, R, 2R, ... instead of
    values [R, sum L] with offsets 0, L, 2L, ... verl's function then only relabels the dimension, and chunking or
    unbinding fails. Fixed-form answers meet this within a few steps.
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
    """Values [B * R, L] of B equally long sequences to a nested tensor [B, R, j] with values [R, B * L]."""
    rows = values.unflatten(0, (len(token_offsets) - 1, -1)).transpose(0, 1).flatten(1)
    return torch.nested.nested_tensor_from_jagged(rows, token_offsets, jagged_dim=2)
