"""What the segmenters that run on torch share: the device, and prompts decoded together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from samr1_verl.config import ConfigError
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.base import Prediction

# Prompts a decoder call on a GPU, as in segment-anything's mask generator: bounds memory where an answer names many
# objects. A CPU takes them one by one: a prompt's 4 MB of image tokens fit its cache, eight prompts' cost 1.3 to 1.6
# times eight calls.
GPU_BATCH = 64


def device_problems(name: str) -> Iterator[str]:
    """Why `samr1.segmenter.device` is no name of a device."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        yield f"samr1.segmenter.device is {name!r}, expected auto, cpu, cuda or cuda:N"


def torch_device(name: str) -> torch.device:
    """The device of a name; auto is the first GPU, else the CPU. Raises ConfigError where it is not there."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"samr1.segmenter.device is {name!r}, and this process sees {torch.cuda.device_count()} GPUs. "
            "Set it to auto or cpu"
        )
    return device


def batch_size(device: torch.device) -> int:
    """Prompts that share a decoder call on a device."""
    return 1 if device.type == "cpu" else GPU_BATCH


def decode_by_form(
    prompts: Sequence[Prompt], batch: int, decode: Callable[[Sequence[Prompt]], Iterable[Prediction]]
) -> list[Prediction]:
    """One prediction for each prompt, in order; prompts of one form (a box or none, the same number of points) share
    calls of `decode`, at most `batch` prompts each.

    Forms are not padded to each other: the decoder attends to padding, so a prompt's mask would depend on its
    neighbours.
    """
    forms: dict[tuple[bool, int], list[int]] = {}
    for index, prompt in enumerate(prompts):
        forms.setdefault((prompt.box is not None, len(prompt.points)), []).append(index)
    found: dict[int, Prediction] = {}
    for indices in forms.values():
        for start in range(0, len(indices), batch):
            some = indices[start : start + batch]
            found.update(zip(some, decode([prompts[index] for index in some]), strict=True))
    return [found[index] for index in range(len(prompts))]
