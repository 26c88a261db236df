"""Copies between host memory and a GPU, from a trace of torch's profiler."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

DIRECTIONS = {"HtoD": "to_device", "DtoH": "to_host"}  # CUDA's names, in the event's name


def copied(trace: dict[str, Any]) -> dict[str, int]:
    """Number and bytes of the copies in each direction, of a trace as Chrome reads it."""
    sums = {f"{name}_{unit}": 0 for name in DIRECTIONS.values() for unit in ("copies", "bytes")}
    for event in trace["traceEvents"]:
        if event.get("cat") == "gpu_memcpy":
            for cuda, name in DIRECTIONS.items():
                if cuda in event["name"]:
                    sums[f"{name}_copies"] += 1
                    sums[f"{name}_bytes"] += event["args"]["bytes"]
    return sums


@contextmanager
def counted_copies(device: str, folder: Path) -> Iterator[dict[str, int]]:
    """Counts the copies of all threads while it is open; the dict is filled at its end."""
    sums: dict[str, int] = {}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        yield sums
        if device == "cuda":
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    sums |= copied(json.loads((folder / "trace.json").read_text()))
