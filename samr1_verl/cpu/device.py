"""The device module of the CPU, with the functions that verl calls on a module such as torch.cuda.

It has the functions of torch.cpu and those that torch.cpu lacks. Memory figures are the resident memory of this process
in bytes, for verl's `perf/max_memory_allocated_gb`.
"""

import resource
import sys

import psutil
import torch
from torch.cpu import (
    Stream,
    current_stream,
    device_count,
    is_available,
    set_device,
    stream,
    synchronize,
)

__all__ = [
    "Stream",
    "current_device",
    "current_stream",
    "device_count",
    "empty_cache",
    "get_device_name",
    "get_rng_state",
    "ipc_collect",
    "is_available",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "set_device",
    "set_rng_state",
    "stream",
    "synchronize",
]

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere


def current_device() -> torch.device:
    """The device for tensors; not an index, because an index would mean a CUDA device."""
    return torch.device("cpu")


def get_device_name() -> str:
    """The name of this device in verl's table of floating point rates."""
    return "CPU"


def get_rng_state() -> torch.Tensor:
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor) -> None:
    torch.set_rng_state(state)


def empty_cache() -> None:
    """Do nothing: the CPU allocator keeps no pool."""


def ipc_collect() -> None:
    """Do nothing: no tensor is shared by a handle."""


def memory_allocated() -> int:
    return psutil.Process().memory_info().rss


def max_memory_allocated() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


memory_reserved = memory_allocated
max_memory_reserved = max_memory_allocated


def mem_get_info() -> tuple[int, int]:
    """Free and total memory of the machine, in bytes."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total
