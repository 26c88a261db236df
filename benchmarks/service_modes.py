"""The three places for the segmenter side by side, and the engine's memory.

    python benchmarks/service_modes.py modes    embedded, ray and http, 32 concurrent rollouts, warm cache
    python benchmarks/service_modes.py memory   resident memory over 2,000 distinct images

Times are wall and processor seconds, the latter of all processes together: on a machine that others use, the second is
the one to read. Each command prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.places import ROOT, ray_folder
from benchmarks.service_commands import Command, parser_of, run
from benchmarks.service_scenes import Scene, segmenter_config
from samr1_verl.config import HttpServiceConfig, RayServiceConfig, SegmenterConfig
from samr1_verl.geometry.images import sha256_of
from samr1_verl.segmenters import Embedding, Prediction, Prompt
from samr1_verl.service.client import Client, get_client
from samr1_verl.service.engine import Engine

Load = tuple[np.ndarray, list[float]]  # wall and processor seconds; each prompt's latency in seconds


def processor_seconds() -> float:
    """Of this process and of its descendants: the server, Ray's own processes and the replica."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total


async def load(client: Client, scenes: list[Scene], concurrent: int) -> Load:
    """Wall and processor seconds of all scenes' prompts, `concurrent` of them in flight, and each prompt's latency."""
    gate = asyncio.Semaphore(concurrent)
    latencies: list[float] = []

    async def rollout(scene: Scene, prompt: Prompt) -> None:
        async with gate:
            start = time.perf_counter()
            await client.overlap(scene.path, scene.sha256, [prompt], scene.truth)
            latencies.append(time.perf_counter() - start)

    wall, used = time.perf_counter(), processor_seconds()
    await asyncio.gather(*(rollout(scene, prompt) for scene in scenes for prompt in scene.prompts))
    return np.array([time.perf_counter() - wall, processor_seconds() - used]), latencies


def places(config: SegmenterConfig, address: str) -> dict[str, SegmenterConfig]:
    """An embedded segmenter in each mode; `address` is the HTTP server's."""
    sections: dict[str, dict[str, Any]] = {
        "embedded": {},
        "ray": {"ray": RayServiceConfig(gpus=0, cpus=2, min_replicas=1, max_replicas=1)},
        "http": {"http": HttpServiceConfig(addresses=(address,))},
    }
    services = {mode: config.service.model_copy(update={"mode": mode, **section}) for mode, section in sections.items()}
    return {mode: config.model_copy(update={"service": service}) for mode, service in services.items()}


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

    sockets = ray_folder()
    ray.init(num_cpus=4, _temp_dir=sockets.name, include_dashboard=False, logging_level="error", log_to_driver=False)
    clients = {name: get_client(place) for name, place in places(config, address).items()}
    scenes = [Scene(folder, index, 8) for index in range(arguments.images)]
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            break
        except OSError as error:
            if server.poll() is not None:
                raise RuntimeError(f"samr1 serve ended with status {server.returncode}") from error
            time.sleep(0.5)

    async def turns() -> dict[str, list[Load]]:
        measured: dict[str, list[Load]] = {name: [] for name in clients}
        for turn in range(arguments.repeats + 1):  # the first fills the caches
            for name, client in clients.items():
                result = await load(client, scenes, 32)
                measured[name] += [result] if turn else []
        return measured

    try:
        measured = asyncio.run(turns())
    finally:
        server.terminate()
        ray.shutdown()
    result: dict[str, Any] = {"backend": config.backend, "rollouts": 8 * arguments.images, "concurrent": 32}
    for name, turns_ in measured.items():
        latencies = np.concatenate([latencies for _, latencies in turns_])
        result[name] = {
            "p50_ms": round(1000 * float(np.percentile(latencies, 50)), 1),
            "p99_ms": round(1000 * float(np.percentile(latencies, 99)), 1),
        }
        for index, clock in enumerate(("wall", "cpu")):
            seconds = [clocks[index] for clocks, _ in turns_]
            ratios = [own / base[index] for own, (base, _) in zip(seconds, measured["embedded"], strict=True)]
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
    commands: dict[str, Command] = {"modes": modes, "memory": memory}
    parser = parser_of(__doc__, commands, backend_of="modes")
    parser.add_argument("--repeats", type=int, default=5, help="modes: turns, of which the median counts")
    parser.add_argument("--distinct", type=int, default=2000, help="memory: number of images")
    run("service_modes", parser, commands)


if __name__ == "__main__":
    main()
