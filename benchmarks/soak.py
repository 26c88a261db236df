"""A soak test of `samr1 serve` on loopback: valid and hostile requests at four times the queue, for some minutes.

    python benchmarks/soak.py --minutes 10

Two servers with a short queue, little space for uploads and embeddings, and a common folder of embeddings. One is
killed (SIGKILL) and started again, again and again; files of the folder are damaged meanwhile. Valid requests name an
image by its path or upload it, and every answer is compared with that of an embedded segmenter. A hostile request that
finds the queue full (status 503) is sent again.

Memory is that of the server that is not killed: the mean of the last minute over the mean of the second minute.

The last line is one JSON object. The exit status is 1 where a valid request was lost or answered wrongly, a hostile one
was not survived, or memory grew by more than 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.service_scenes import Scene, segmenter_config
from benchmarks.soak_attacks import ATTACKS, BUSY, survived
from benchmarks.soak_servers import TOKEN, Replica, corrupt, free_port, kill_again_and_again
from samr1_verl import Samr1Error
from samr1_verl.config import HttpServiceConfig
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.service.engine import engine_of
from samr1_verl.service.http_client import HttpClient
from samr1_verl.service.wire import TOKEN_VARIABLE

QUEUE, IMAGES, PROMPTS = 4, 32, 4  # per server; images, and prompts of each
REQUESTS = 4 * 2 * QUEUE  # in flight: four times the queues
HOSTILE = REQUESTS // 4  # of these
GROWTH = 0.05


@dataclass
class Tally:
    """What happened."""

    seconds: list[float] = field(default_factory=list)  # of each valid request
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hostile: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    disturbed: dict[str, int] = field(default_factory=dict)


async def ask_validly(
    client: HttpClient, scenes: Sequence[Scene], expected: dict[Any, Overlap], tally: Tally, end: float, seed: int
) -> None:
    """Valid requests, one after the other, until the end."""
    draw = random.Random(seed)
    while time.monotonic() < end:
        scene = draw.choice(scenes)
        number = draw.randrange(PROMPTS)
        started = time.monotonic()
        try:
            found = await client.overlap(scene.path, scene.sha256, [scene.prompts[number]], scene.truth)
        except Samr1Error as error:
            tally.lost.append(str(error))
            continue
        tally.seconds.append(time.monotonic() - started)
        if found.pixels != expected[scene.sha256, number].pixels:
            tally.wrong.append(f"{scene.path}: {found}, expected {expected[scene.sha256, number]}")


async def ask_hostilely(replica: Replica, tally: Tally, end: float, seed: int) -> None:
    """Hostile requests to a server, one after the other, until the end. While it is down there is nothing to attack."""
    draw = random.Random(seed)
    while time.monotonic() < end:
        name = draw.choice(list(ATTACKS))
        try:
            outcome = await ATTACKS[name](replica.address, draw)
        except (ConnectionError, OSError):
            await asyncio.sleep(0.5)
            continue
        except asyncio.TimeoutError:
            outcome = "no answer"
        if outcome == BUSY:
            await asyncio.sleep(0.2)
        else:
            tally.hostile[name][outcome] += 1


async def watch(replica: Replica, began: float) -> None:
    while True:
        replica.read_memory(time.monotonic() - began)
        await asyncio.sleep(1)


async def soak(minutes: float, folder: Path) -> dict[str, Any]:
    """Run the soak, and return its figures. All servers have ended afterwards."""
    (folder / "root").mkdir()
    (folder / "elsewhere").mkdir()
    scenes = [Scene(folder / ("root" if index % 2 else "elsewhere"), index, PROMPTS) for index in range(IMAGES)]
    engine = engine_of(segmenter_config("onnx", folder))
    expected = {
        (scene.sha256, number): await engine.overlap(scene.path, scene.sha256, [prompt], scene.truth)
        for scene in scenes
        for number, prompt in enumerate(scene.prompts)
    }
    engine.close()
    os.environ[TOKEN_VARIABLE] = TOKEN
    replicas = [Replica(free_port(), folder / "root", folder / "cache", QUEUE) for _ in range(2)]
    tally = Tally()
    try:
        for replica in replicas:
            replica.start()
        await asyncio.gather(*(replica.ready() for replica in replicas))
        await _load(minutes * 60, replicas, scenes, expected, folder / "cache", tally)
        statuses = [await asyncio.to_thread(replica.stop) for replica in replicas]
    finally:
        for replica in replicas:
            replica.kill()
    return figures(tally, replicas[0].memory, minutes * 60) | {"exit_statuses": statuses}


async def _load(
    seconds: float,
    replicas: Sequence[Replica],
    scenes: Sequence[Scene],
    expected: dict[Any, Overlap],
    cache: Path,
    tally: Tally,
) -> None:
    client = HttpClient(
        HttpServiceConfig(addresses=tuple(replica.address for replica in replicas)), timeout_s=300, attempt_s=60
    )
    began = time.monotonic()
    end = began + seconds
    disturbances = [
        asyncio.create_task(kill_again_and_again(replicas[1], max(10.0, seconds / 20), tally.disturbed)),
        asyncio.create_task(corrupt(cache, 1.0, tally.disturbed)),
        asyncio.create_task(watch(replicas[0], began)),
    ]
    valid = [ask_validly(client, scenes, expected, tally, end, seed) for seed in range(REQUESTS - HOSTILE)]
    hostile = [ask_hostilely(replicas[number % 2], tally, end, number) for number in range(HOSTILE)]
    try:
        await asyncio.gather(*valid, *hostile)
    finally:
        for task in disturbances:
            task.cancel()
        failed = await asyncio.gather(*disturbances, return_exceptions=True)
    if faults := [fault for fault in failed if isinstance(fault, Exception)]:
        raise faults[0]


def figures(tally: Tally, memory: Sequence[tuple[float, int]], seconds: float) -> dict[str, Any]:
    """The figures of a soak. Memory in MB; a soak of less than 3 minutes has shorter parts of 1/3 of its time."""
    part = min(60.0, seconds / 3)
    early = [used for at, used in memory if part <= at < 2 * part]
    late = [used for at, used in memory if at >= memory[-1][0] - part]
    growth = float(np.mean(late) / np.mean(early) - 1)
    hostile = {name: dict(tally.hostile[name]) for name in ATTACKS}
    bad = {name: kinds for name, kinds in hostile.items() if not kinds or not all(map(survived, kinds))}
    return {
        "valid": len(tally.seconds),
        "per_second": round(len(tally.seconds) / seconds, 2),
        "p50_s": round(float(np.quantile(tally.seconds, 0.5)), 2),
        "p99_s": round(float(np.quantile(tally.seconds, 0.99)), 2),
        "lost": len(tally.lost),
        "wrong": len(tally.wrong),
        "messages": [*tally.lost, *tally.wrong][:5],
        "hostile_requests": sum(sum(kinds.values()) for kinds in hostile.values()),
        "hostile": hostile,
        "not_survived": bad,
        "disturbed": tally.disturbed,
        "memory_mb": [round(float(np.mean(part)) / 1e6, 1) for part in (early, late)],
        "growth": round(growth, 4),
        "ok": not (tally.lost or tally.wrong or bad) and growth <= GROWTH,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(soak(options.minutes, Path(folder)))
    for name, value in result.items():
        print(f"{name}: {value}")
    print(json.dumps({"benchmark": "soak", "minutes": options.minutes, **result}))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
