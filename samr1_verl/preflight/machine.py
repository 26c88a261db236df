"""What a machine has: GPUs, host memory, disk and versions; and one CUDA kernel on each GPU.

`samr1 doctor` runs `gpu_report` in a fresh process, because a process that has started CUDA keeps GPU memory. It runs
`facts` on every node of a cluster, also where samr1-verl is not installed. Therefore this file imports nothing of ours.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

COMPARED = ("samr1-verl", "verl", "torch", "transformers", "ray", "vllm")  # distributions that every node needs alike
CGROUP = Path("/sys/fs/cgroup")


def gpu_report() -> dict[str, Any]:
    """The GPUs of this machine, and torch's and the driver's CUDA versions.

    Keys: `torch` and `torch_cuda`, torch's version and the CUDA version it is built for, None: a build without CUDA;
    `driver` and `driver_cuda`, versions of the driver, None: there is none, or nvidia-ml-py is not installed;
    `installed`, the number of GPUs that the driver knows; `devices`, one dict per GPU that torch sees: `name`,
    `capability` [major, minor], `total` and `free` bytes, and `error`, the message of a kernel that failed, or None.
    """
    import torch

    report: dict[str, Any] = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, **_driver()}
    report["devices"] = [_device(index) for index in range(torch.cuda.device_count())]
    return report


def _driver() -> dict[str, Any]:
    nothing = {"driver": None, "driver_cuda": None, "installed": 0}
    try:
        import pynvml
    except ImportError:
        return nothing
    try:
        pynvml.nvmlInit()
        number = pynvml.nvmlSystemGetCudaDriverVersion_v2()  # 13000 is 13.0, 12080 is 12.8
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "driver_cuda": f"{number // 1000}.{number % 1000 // 10}",
            "installed": pynvml.nvmlDeviceGetCount(),
        }
    except pynvml.NVMLError:  # no driver
        return nothing


def _device(index: int) -> dict[str, Any]:
    import torch

    report: dict[str, Any] = {"name": f"GPU {index}", "capability": None, "total": 0, "free": 0, "error": None}
    try:
        properties = torch.cuda.get_device_properties(index)
        report |= {"name": properties.name, "capability": [properties.major, properties.minor]}
        report["free"], report["total"] = torch.cuda.mem_get_info(index)
        ones = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.bfloat16)
        total = float((ones @ ones).sum().item())
        if total != 64**3:
            report["error"] = f"a matrix product gave {total}, expected {64**3}"
    except (RuntimeError, AssertionError) as error:  # torch's CUDA errors are RuntimeErrors
        report["error"] = f"{type(error).__name__}: {error}"
    return report


def host_memory() -> tuple[int, int]:
    """Total and available bytes of host memory, within the limit of the container that this process is in."""
    import psutil

    memory = psutil.virtual_memory()
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:  # no container, or cgroup version 1
        return memory.total, memory.available
    if limit == "max":
        return memory.total, memory.available
    used -= int(statistics.get("inactive_file", 0))  # pages of files, which the kernel gives back
    return min(memory.total, int(limit)), max(0, min(memory.available, int(limit) - used))


def free_disk(folder: str) -> int:
    """Free bytes of the disk on which `folder` lies or will be made."""
    path = Path(folder).expanduser().absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def versions() -> dict[str, str | None]:
    """Versions of COMPARED, and of Python; None: not installed."""
    found: dict[str, str | None] = {"python": python_version()}
    for name in COMPARED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def facts(files: Sequence[str], models: dict[str, str]) -> dict[str, Any]:
    """What a node of a cluster has.

    Args:
        files: absolute paths of data files and images.
        models: path or hub id by configuration key.

    Returns:
        `host`: its name; `versions`; `missing`: number and first of the files that are not there; `models`: the state
        of each model by key: "here", "download" (a hub id that is not in the cache, and may be downloaded) or
        "missing"; `memory`: total and available bytes.
    """
    missing = [file for file in files if not os.path.exists(file)]
    return {
        "host": os.uname().nodename,
        "versions": versions(),
        "missing": [len(missing), missing[0] if missing else None],
        "models": {key: _model(path) for key, path in models.items()},
        "memory": list(host_memory()),
    }


def _model(path: str) -> str:
    place = Path(path).expanduser()
    if place.exists():
        return "here"
    if place.is_absolute() or len(place.parts) != 2:
        return "missing"
    try:
        from huggingface_hub import constants, try_to_load_from_cache
    except ImportError:
        return "missing"
    if isinstance(try_to_load_from_cache(path, "config.json"), str):
        return "here"
    return "missing" if constants.HF_HUB_OFFLINE else "download"
