"""Functions that the torch segmenters share: choice of the device, and batches of prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from samr1_verl.config import ConfigError
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.base import Prediction

# Maximum number of prompts per decoder call on a GPU, as in segment-anything's mask generator: it limits the memory for
# an answer with many objects. On a CPU each prompt is one call: the 4 MB of image tokens of one prompt fit the CPU's
# cache, and one call with eight prompts takes 1.3 to 1.6 times as long as eight calls.
GPU_BATCH = 64


def device_problems(name: str) -> Iterator[str]:
    """A message where `samr1.segmenter.device` is not the name of a device."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        yield f"samr1.segmenter.device is {name!r}, expected auto, cpu, cuda or cuda:N"


def torch_device(name: str) -> torch.device:
    """The device of a name; auto: the first GPU, else the CPU. Raises ConfigError where the device does not exist."""
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
    """Maximum number of prompts per decoder call on a device."""
    return 1 if device.type == "cpu" else GPU_BATCH


def decode_by_form(
    prompts: Sequence[Prompt], batch: int, decode: Callable[[Sequence[Prompt]], Iterable[Prediction]]
) -> list[Prediction]:
    """One prediction per prompt, in the order of the prompts.

    Prompts of one form (a box or none, the same number of points) share calls of `decode`, with at most `batch` prompts
    per call. Different forms are not padded to one form: the decoder attends to padding, so a prompt's mask would
    depend on the other prompts of its call.
    """
    forms: dict[tuple[bool, int], list[int]] = {}
    for index, prompt in enumerate(prompts):
        forms.setdefault((prompt.box is not None, len(prompt.points)), []).append(index)
    predictions: dict[int, Prediction] = {}
    for indices in forms.values():
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            predictions.update(zip(part, decode([prompts[index] for index in part]), strict=True))
    return [predictions[index] for index in range(len(prompts))]
