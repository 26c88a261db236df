"""The place where a segmenter computes, in one line of a run's output."""

from __future__ import annotations

import os
import socket

import typer

from samr1_verl.config import SegmenterConfig


def place_of(device: str) -> str:
    """This process, its node and the segmenter's device; for a GPU its model and the GPUs that the process sees."""
    if device.startswith("cuda"):
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        device = f"{device} of CUDA_VISIBLE_DEVICES={visible} ({torch.cuda.get_device_name(device)})"
    return f"process {os.getpid()} on {socket.gethostname()}, device {device}"


def log_place(place: str, config: SegmenterConfig) -> None:
    """Write the line to standard error, which Ray forwards to the output of the training.

    A logger would not do: the level of loggers in Ray's workers hides it.
    """
    typer.echo(
        f"samr1: the segmenter runs in {place}; {config.backend} {config.path}, {config.dtype}, "
        f"samr1.segmenter.service.mode={config.service.mode}",
        err=True,
    )
