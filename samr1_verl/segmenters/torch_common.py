"""Functions that the torch segmenters share: device, precision of the encoder, and batches of prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from samr1_verl.config import ConfigError, SegmenterConfig
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.base import CPU_LIMITS, Limits

# Prompts per decoder call: as in segment-anything's mask generator. Images per encoder call: a few, since their
# activations lie beside the policy's memory. The newest 16 embeddings are the images of one step of the paper's recipe,
# 270 MB with SAM 2. Masks: 8 rollouts with 16 objects each of an image with 8 megapixels.
GPU_LIMITS = Limits(prompts=64, images=4, embeddings=16, mask_bytes=1 << 30)
TF32_CAPABILITY = (8, 0)  # of the first GPUs with TF32, Ampere

Predicted = TypeVar("Predicted")


def torch_problems(config: SegmenterConfig) -> Iterator[str]:
    """The problems of `device` and `encoder_precision`, one message per problem."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        yield f"samr1.segmenter.device is {config.device!r}, expected auto, cpu, cuda or cuda:N"
        return
    precision = f"samr1.segmenter.encoder_precision is {config.encoder_precision}"
    if config.encoder_precision != "float32" and config.dtype != "float32":
        yield (
            f"{precision}, and samr1.segmenter.dtype is {config.dtype}, in which the encoder computes already. "
            "Set one of the two to float32"
        )
    if config.encoder_precision == "tf32" and (place := _cpu_of(config)):
        yield f"{precision}, and {place}, but only GPUs have TF32. Set it to float32 or bfloat16"


def torch_device(name: str) -> torch.device:
    """The device of a name; auto: the first GPU, else the CPU. Raises ConfigError where the device does not exist."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            "no_such_gpu",
            "samr1.segmenter.device",
            f"found {name!r}, and this process sees {torch.cuda.device_count()} GPUs. Set it to auto or cpu",
        )
    return device


def limits_of(device: torch.device) -> Limits:
    """The limits of a segmenter on a device."""
    return CPU_LIMITS if device.type == "cpu" else GPU_LIMITS


def check_precision(encoder_precision: str, device: torch.device) -> None:
    """Check that a device has the precision of the encoder. Raises ConfigError where it does not."""
    if encoder_precision != "tf32":
        return
    has = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if has < TF32_CAPABILITY:
        raise ConfigError(
            "no_tf32",
            "samr1.segmenter.encoder_precision",
            f"found tf32, and the segmenter is on {device}, which has no TF32: that takes a GPU of compute capability "
            f"{'.'.join(map(str, TF32_CAPABILITY))}. Set it to float32 or bfloat16",
        )


@contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """Compute products of float32 matrices and convolutions on CUDA in a precision: ieee (full) or tf32.

    PyTorch has one setting for the whole process. Its default is tf32 for convolutions.
    """
    convolutions: Any = torch.backends.cudnn  # typed as a module, which lacks `conv`
    settings = (torch.backends.cuda.matmul, convolutions.conv)
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = precision
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def decode_by_form(
    prompts: Sequence[Prompt], batch: int, decode: Callable[[Sequence[Prompt]], Iterable[Predicted]]
) -> list[Predicted]:
    """One prediction per prompt, in the order of the prompts.

    Prompts of one form (a box or none, the same number of points) share calls of `decode`, with at most `batch` prompts
    per call. Different forms are not padded to one form: the decoder attends to padding, so a prompt's mask would
    depend on the other prompts of its call.
    """
    forms: dict[tuple[bool, int], list[int]] = {}
    for index, prompt in enumerate(prompts):
        forms.setdefault((prompt.box is not None, len(prompt.points)), []).append(index)
    predictions: dict[int, Predicted] = {}
    for indices in forms.values():
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            predictions.update(zip(part, decode([prompts[index] for index in part]), strict=True))
    return [predictions[index] for index in range(len(prompts))]


def _cpu_of(config: SegmenterConfig) -> str | None:
    """The key that puts the segmenter on a CPU, with its value; None: no key does, as far as this machine can tell."""
    service = config.service
    if config.device == "cpu":
        return "samr1.segmenter.device is cpu"
    if service.mode == "ray" and service.ray is not None and service.ray.gpus == 0:
        return "samr1.segmenter.service.ray.gpus is 0"
    if service.mode == "embedded" and config.device == "auto" and not torch.cuda.is_available():
        return "samr1.segmenter.device is auto on a machine without a GPU"
    return None
