"""Checks of the GPUs of this machine and of the versions that verl pins for them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from omegaconf import DictConfig
from packaging.requirements import Requirement
from packaging.version import Version

from samr1_verl.preflight.finding import Finding

BFLOAT16 = (8, 0)  # compute capability of the first GPUs with bfloat16, Ampere
PINNED = ("torch", "torchvision", "transformers", "vllm", "sglang", "ray", "tensordict")


def examine_gpus(config: DictConfig, report: dict[str, Any]) -> Iterator[Finding]:
    """Findings about the GPUs, from machine.gpu_report; none on a machine without GPUs."""
    if config.trainer.device == "cpu":
        return
    yield pinned_versions(str(config.actor_rollout_ref.rollout.name))
    if report["installed"] or report["devices"]:
        yield Finding("driver", f"{report['driver']}, CUDA {report['driver_cuda']}", list(_driver(report)))
        names = ", ".join(sorted({device["name"] for device in report["devices"]}))
        yield Finding("kernel", f"{len(report['devices'])} x {names}", list(_kernels(report)))


def _driver(report: dict[str, Any]) -> Iterator[str]:
    torch = f"torch {report['torch']}"
    if report["torch_cuda"] is None:
        yield (
            f"{torch} is built without CUDA, and this machine has {report['installed']} GPUs. Type: pip install "
            "--force-reinstall torch torchvision -c constraints-gpu.txt"
        )
        return
    driver = report["driver_cuda"]
    if driver is not None and Version(driver).major < Version(report["torch_cuda"]).major:
        yield (
            f"the driver {report['driver']} knows CUDA {driver}, and {torch} is built for CUDA {report['torch_cuda']}. "
            f"Install a driver for CUDA {Version(report['torch_cuda']).major} or newer"
        )
    elif not report["devices"]:
        yield (
            f"the driver knows {report['installed']} GPUs, and {torch} sees none. Look at CUDA_VISIBLE_DEVICES, then "
            "at the output of nvidia-smi"
        )


def _kernels(report: dict[str, Any]) -> Iterator[str]:
    for index, device in enumerate(report["devices"]):
        if device["error"] is not None:
            yield (
                f"GPU {index} ({device['name']}): a matrix product failed: {device['error'].strip()}. Look at the "
                "output of nvidia-smi; leave this GPU out with CUDA_VISIBLE_DEVICES and trainer.n_gpus_per_node"
            )
        elif device["capability"] is not None and tuple(device["capability"]) < BFLOAT16:
            major, minor = device["capability"]
            yield (
                f"GPU {index} ({device['name']}) has compute capability {major}.{minor}, expected at least "
                f"{BFLOAT16[0]}.{BFLOAT16[1]}: the recipes compute in bfloat16. Use a newer GPU"
            )


def pinned_versions(rollout: str) -> Finding:
    """The installed versions against those that verl's own metadata names for a rollout engine.

    A package that is not installed is left to the check of the packages.
    """
    problems, named = [], []
    for line in requires("verl") or []:
        requirement = Requirement(line)
        in_force = requirement.marker is None or requirement.marker.evaluate({"extra": rollout})
        if requirement.name not in PINNED or not in_force:
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue
        wanted = str(requirement.specifier) or "any version"
        if not requirement.specifier.contains(installed, prereleases=True):
            problems.append(
                f"{requirement.name} is {installed}, verl {version('verl')} pins {wanted} for {rollout}. Type: pip "
                f"install '{requirement.name}{requirement.specifier}'"
            )
        else:
            named.append(f"{requirement.name} {installed}")
    return Finding(f"verl's versions for {rollout}", ", ".join(dict.fromkeys(named)), problems)
