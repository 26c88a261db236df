"""An adaptation of verl's function that has no hook and fails on the CPU alone: the backend of the process group."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

import wrapt

NAME = "initialize_global_process_group_ray"


def register() -> None:
    """Replace the function, now or when verl imports it. A second call changes nothing."""
    wrapt.register_post_import_hook(_replace, "verl.utils.distributed")


def _replace(module: ModuleType) -> None:
    if not hasattr(getattr(module, NAME), "__wrapped__"):
        setattr(module, NAME, with_one_gloo_backend(getattr(module, NAME)))


def with_one_gloo_backend(initialize: Callable[..., None]) -> Callable[..., None]:
    """Use the backend string "cpu:gloo".

    verl joins "cpu:gloo" and "<device>:<backend>"; with the CPU as device torch refuses the duplicate.
    """

    @functools.wraps(initialize)
    def initialize_global_process_group_ray(timeout_second: int | None = None, backend: str | None = None) -> None:
        initialize(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    return initialize_global_process_group_ray
