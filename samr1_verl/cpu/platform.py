"""The CPU as a platform of verl, for machines without an accelerator.

verl's resource pools reserve Ray's resource "GPU", so Ray counts training workers by it. A run declares the resource
with `ray_kwargs.ray_init.num_gpus`, one per worker; no such device needs to exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

from samr1_verl.cpu import device


@PlatformRegistry.register("cpu")
class CPUPlatform(PlatformBase):
    """The platform for verl's FSDP2 engine and the rollout `transformers`, or vLLM's CPU build in verl's server."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return device

    def is_available(self) -> bool:
        return True

    def current_device(self) -> torch.device:
        """As `device.current_device`: not an index, which would mean a CUDA device in Tensor.to."""
        return device.current_device()

    def device_count(self) -> int:
        return device.device_count()

    def set_device(self, device_index: int) -> None:
        """Do nothing: there is only one CPU device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Do nothing: a CPU operator is finished when it returns."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """Do nothing: the CPU allocator has no such settings."""

    def empty_cache(self) -> None:
        device.empty_cache()

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """The variable that Ray sets in a worker with the resource "GPU"."""
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        """False: verl's vLLM server then reads its weights from shared memory."""
        return False

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        """Do nothing: there is no device profiler."""

    def profiler_stop(self) -> None:
        """Do nothing: there is no device profiler."""

    def cudart(self) -> Any:
        return None
