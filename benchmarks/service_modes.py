"""The three places for the segmenter side by side, and the engine's memory.

    python benchmarks/service_modes.py modes    embedded, ray and http, 32 concurrent rollouts, warm cache
    python benchmarks/service_modes.py memory   resident memory over 2,000 distinct images

Times are wall and processor seconds, the latter of all processes together: on a machine that others use, the second is
the one to read. Each command prints one JSON object as its last line.
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
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from service_scenes import ROOT, Scene, segmenter_config

from samr1_verl.geometry.images import sha256_of
from samr1_verl.segmenters import Embedding, Prediction, Prompt
from samr1_verl.service.client import Client, get_client
from samr1_verl.service.engine import Engine


def processor_seconds() -> float:
    """Of this process and of all that it started: the server, Ray's own and the replica."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total


async def load(client: Client, scenes: list[Scene], concurrent: int) -> tuple[np.ndarray, list[float]]:
    """Wall and processor seconds of all scenes' prompts with so many in flight, and each one's latency."""
    gate, latencies = asyncio.Semaphore(concurrent), []

    async def rollout(scene: Scene, prompt: Prompt) -> None:
        async with gate:
            start = time.perf_counter()
            await client.overlap(scene.path, scene.sha256, [prompt], scene.truth)
            latencies.append(time.perf_counter() - start)

    wall, used = time.perf_counter(), processor_seconds()
    await asyncio.gather(*(rollout(scene, prompt) for scene in scenes for prompt in scene.prompts))
    return np.array([time.perf_counter() - wall, processor_seconds() - used]), latencies


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

    async def turns() -> dict[str, list[tuple[np.ndarray, list[float]]]]:
        found: dict[str, list[tuple[np.ndarray, list[float]]]] = {name: [] for name in clients}
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
            "p50_ms": round(1000 * float(np.percentile(latencies, 50)), 1),
            "p99_ms": round(1000 * float(np.percentile(latencies, 99)), 1),
        }
        for index, clock in enumerate(("wall", "cpu")):
            seconds = [one[index] for one, _ in turns_]
            ratios = [one / base[index] for one, (base, _) in zip(seconds, found["embedded"], strict=True)]
            result[name][f"{clock}_s"] = round(float(statistics.median(seconds)), 2)
            result[name][f"{clock}_over_embedded"] = round(float(statistics.median(ratios)), 3)
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
    commands = {"modes": modes, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--backend", choices=("onnx", "segment_anything"), default="onnx", help="of modes")
    parser.add_argument("--images", type=int, default=16, help="of modes, with 8 rollouts each")
    parser.add_argument("--repeats", type=int, default=5, help="of modes")
    parser.add_argument("--distinct", type=int, default=2000, help="images of memory")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    with tempfile.TemporaryDirectory() as temporary:
        result = commands[arguments.command](arguments, Path(temporary))
    print(json.dumps({"benchmark": f"service_modes {arguments.command}", **result}))


if __name__ == "__main__":
    main()
