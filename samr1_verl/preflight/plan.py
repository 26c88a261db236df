"""The memory plan of a run against what the machine has: GPUs, host memory, disk.

    findings = list(examine_memory(config, settings, report, Given()))

The plan is an upper bound from the configuration; docs/gpus.md explains its terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from samr1_verl.config import ROLLOUT, ConfigError, Samr1Config
from samr1_verl.preflight.finding import Finding
from samr1_verl.preflight.gpu_memory import gpu_stages, least_share
from samr1_verl.preflight.host_memory import disk_stage, embeddings_stage, host_stage, row_counts
from samr1_verl.preflight.inputs import uses_segmenter
from samr1_verl.preflight.machine import free_disk, host_memory
from samr1_verl.preflight.memory import GB, Shape, Stage, gb
from samr1_verl.preflight.policy_size import UnknownPolicyError, policy_size

MOST = 0.9  # of a GPU that vLLM can take beside a training worker


@dataclass(frozen=True)
class Given:
    """Sizes in GB that take the place of this machine's own; None: this machine's."""

    gpu_gb: float | None = None
    host_gb: float | None = None
    disk_gb: float | None = None


@dataclass(frozen=True)
class Room:
    """The room for a stage: `free` bytes, in `name`."""

    name: str
    free: int

    def problem(self, stage: Stage) -> Iterator[str]:
        """The message where a stage does not fit."""
        if stage.size > self.free:
            yield (
                f"{stage.name}: {gb(stage.size).strip()} needed, {gb(self.free).strip()} free ({self.name}). The "
                f"largest terms: {stage.remedies()}"
            )


def examine_memory(
    config: DictConfig, settings: Samr1Config, report: dict[str, Any], given: Given
) -> Iterator[Finding]:
    """One finding per kind of memory, with every term of the plan.

    Args:
        config: a composed recipe that passed the checks of types.
        settings: its section `samr1`.
        report: machine.gpu_report of this machine.
        given: sizes that take the place of the machine's.
    """
    try:
        shape = Shape.of(config, policy_size(config.actor_rollout_ref.model))
    except UnknownPolicyError as error:
        yield Finding("memory", f"not planned: {error}")
        return
    except ConfigError as error:
        yield Finding("memory", "not planned", [str(error)])
        return
    segmenter = settings.segmenter if uses_segmenter(config) else None
    if not shape.on_cpu:
        total = _total(report) if given.gpu_gb is None else int(given.gpu_gb * GB)
        stages = gpu_stages(config, segmenter, shape, total)
        problems = _share_problems(config, shape, total)
        yield _finding("memory per GPU", stages, _gpu(report, given), problems)
    rows = row_counts(config)
    yield _finding("host memory per node", [host_stage(config, segmenter, shape, rows)], _host(given))
    disk = Room("--disk-gb", int(given.disk_gb * GB)) if given.disk_gb is not None else None
    folder = str(config.trainer.default_local_dir)
    yield _finding(
        "disk", [disk_stage(config, shape, rows[0])], disk or Room(f"the disk of {folder}", free_disk(folder))
    )
    if (
        segmenter is not None
        and (cache := segmenter.service.cache_dir) is not None
        and segmenter.service.mode != "http"
    ):
        room = disk or Room(f"the disk of {cache}", free_disk(cache))
        yield _finding("disk of embeddings", [embeddings_stage(segmenter, sum(rows))], room)


def _finding(subject: str, stages: list[Stage], room: Room | None, problems: list[str] | None = None) -> Finding:
    largest = max(stages, key=lambda stage: stage.size)
    detail = f"{gb(largest.size).strip()} needed" + (f" in the stage {largest.name}" if len(stages) > 1 else "")
    if room is None:
        detail += "; nothing to compare with: no GPU is here, and --gpu-gb is not given"
    else:
        detail += f", {gb(room.free).strip()} free ({room.name})"
        problems = [*(problems or []), *(problem for stage in stages for problem in room.problem(stage))]
    lines = [line for stage in sorted(stages, key=lambda stage: -stage.size) for line in stage.lines()]
    return Finding(subject, detail, problems or [], lines)


def _total(report: dict[str, Any]) -> int | None:
    """Bytes of the smallest GPU, of which vLLM takes its share; None: there is no GPU."""
    return min((device["total"] for device in report["devices"] if device["total"]), default=None)


def _gpu(report: dict[str, Any], given: Given) -> Room | None:
    """The free memory of the GPU that has least of it; None: there is no GPU, and none is given."""
    if given.gpu_gb is not None:
        return Room("--gpu-gb", int(given.gpu_gb * GB))
    devices = [
        (device["free"], f"GPU {index}, {device['name']}, {gb(device['total']).strip()}")
        for index, device in enumerate(report["devices"])
        if device["total"]
    ]
    return Room(min(devices)[1], min(devices)[0]) if devices else None


def _host(given: Given) -> Room:
    if given.host_gb is not None:
        return Room("--host-gb", int(given.host_gb * GB))
    total, available = host_memory()
    return Room(f"this machine, {gb(total).strip()}", available)


def _share_problems(config: DictConfig, shape: Shape, gpu: int | None) -> list[str]:
    """vLLM's share of a GPU is too small for weights and one rollout. vLLM itself says so after minutes."""
    rollout, needed = config.actor_rollout_ref.rollout, least_share(config, shape)
    if gpu is None or rollout.name != "vllm" or rollout.gpu_memory_utilization * gpu >= needed:
        return []
    enough = needed / gpu + 0.05
    split = f"{ROLLOUT}.tensor_model_parallel_size={2 * rollout.tensor_model_parallel_size}, which splits the weights"
    return [
        f"{ROLLOUT}.gpu_memory_utilization is {rollout.gpu_memory_utilization}: vLLM gets "
        f"{gb(rollout.gpu_memory_utilization * gpu).strip()} of {gb(gpu).strip()}, expected at least "
        f"{gb(needed).strip()} for weights, work and one rollout. Set "
        + (f"it to {enough:.2f}, or {split}" if enough < MOST else split)
    ]
