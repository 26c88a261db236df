"""The Ray Serve application in a real cluster: started once, routed by digest, and no fault is lost or scored as 0."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

from samr1_verl.config import ConfigError, segmenter_config
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import MaskError, encode_rle
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.segmenters import Prompt, weights_digest
from samr1_verl.service import ray_app
from samr1_verl.service.client import announce
from samr1_verl.service.ray_client import RayClient
from samr1_verl.service.retry import ServiceError
from tests.attack.client_world import limit_attempts
from tests.errors import refused
from tests.service.fake import image_file
from tests.service.servers import environment
from tests.waiting import GUARD_S, until

BOX, RIGHT = Prompt((2, 1, 8, 5)), Overlap(PixelCounts(12, 40), 0.5)
RAY = {"gpus": 0, "cpus": 0, "min_replicas": 1, "max_replicas": 1}


@pytest.fixture(scope="module", autouse=True)
def reserved(ray_cluster: None) -> Iterator[None]:
    """Both GPUs are reserved by a placement group, as verl's are."""
    group = ray.util.placement_group([{"GPU": 1, "CPU": 1}] * 2)
    ray.get(group.ready())
    yield
    serve.shutdown()
    ray.util.remove_placement_group(group)


@pytest.fixture
def make() -> Iterator[Any]:
    """Clients of the fake segmenter, whose application goes with the test. `path` tells them apart."""
    made: list[RayClient] = []

    def make(name: str, attempt_s: float = GUARD_S, gated: bool = False, **options: Any) -> Any:
        service = {"mode": "ray", "cache_gb": 0.1, "cache_dir": None, "ray": RAY | options}
        service |= {"timeout_s": 2 * GUARD_S, "attempt_s": attempt_s}
        path = f"{name},{'gate' if gated else 0}"
        what = {"backend": "tests.service.fake", "path": path, "device": "cpu", "dtype": "float32"}
        made.append(RayClient(segmenter_config(what | {"service": service})))
        return made[-1]

    yield make
    for client in made:
        serve.delete(ray_app.application_name(client._config), _blocking=False)


def truth() -> GroundTruth:
    mask = np.zeros((10, 20), bool)
    mask[1:5, 5:12] = True
    return GroundTruth(size=(10, 20), masks=(encode_rle(mask),))


async def ask_many(client: RayClient, folder: Path, count: int, group: int = 1) -> None:
    images = [image_file(folder, grey) for grey in range(count)]
    asked = [client.overlap(*image, [BOX], truth()) for image in images for _ in range(group)]
    assert await asyncio.gather(*asked) == [RIGHT] * count * group


def encodes(folder: Path) -> int:
    """The number of encodes that the replicas of a gated client have begun."""
    log = folder / "encodes"
    return log.read_text().count("begun") if log.exists() else 0


async def pids_of(client: RayClient, digests: list[str]) -> dict[str, int]:
    handle = await client._started()
    answers = [handle.options(session_id=digest).environment.remote() for digest in digests]
    return {digest: (await answer)["pid"] for digest, answer in zip(digests, answers, strict=True)}


async def test_answers_and_faults_are_those_of_the_embedded_engine(make, tmp_path):
    client, image = make("plain"), image_file(tmp_path, 7)
    await client.prefetch(*image)
    (prediction,) = await client.segment(*image, [BOX])
    assert prediction.mask.sum() == 24 and prediction.score == 0.5
    assert await client.overlap(*image, [BOX], truth()) == RIGHT
    with refused(ImageError, "digest_differs", image[0], image[1], "0" * 64):
        await client.overlap(image[0], "0" * 64, [BOX], truth())
    with refused(MaskError, "size_differs", f"{image[0]}: ground_truth.size", "20x10"):
        await client.overlap(*image, [BOX], GroundTruth(size=(20, 10), masks=()))
    await asyncio.gather(*(client.overlap(*image, [BOX], truth()) for _ in range(16)))
    counters = await client.counters()
    assert counters.encodes == 1 and counters.hits >= 17


async def test_calls_about_one_image_travel_together_and_fail_apart(make, tmp_path, monkeypatch):
    client, image, other = make("plain"), image_file(tmp_path, 7), image_file(tmp_path, 8)
    requests, request = [], client._request

    async def count(method: str, session: str, *arguments: Any) -> Any:
        requests.append(len(arguments[-1]))
        return await request(method, session, *arguments)

    monkeypatch.setattr(client, "_request", count)
    asked = [asyncio.ensure_future(client.overlap(*one, [BOX], truth())) for one in (image, image, image, other)]
    wrong = asyncio.ensure_future(client.overlap(*image, [BOX], GroundTruth(size=(20, 10), masks=())))
    await asyncio.sleep(0)
    asked[0].cancel()
    assert await asyncio.gather(*asked[1:]) == [RIGHT] * 3
    with refused(MaskError, "size_differs", f"{image[0]}: ground_truth.size", "20x10"):
        await wrong
    assert sorted(requests) == [1, 4]


async def test_a_request_that_nobody_waits_for_is_cancelled(make, tmp_path, monkeypatch):
    client, image, asks, cancelled = make("plain"), image_file(tmp_path, 7), asyncio.Event(), asyncio.Event()

    async def hang(*_: Any) -> None:
        asks.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(client, "_request", hang)
    asked = [asyncio.ensure_future(client.overlap(*image, [BOX], truth())) for _ in range(2)]
    await asks.wait()
    asked[0].cancel()
    await asyncio.sleep(0)
    assert not cancelled.is_set()
    asked[1].cancel()
    await asyncio.wait_for(cancelled.wait(), GUARD_S)


async def test_what_is_announced_needs_no_encode_when_it_is_asked(make, tmp_path):
    client = make("announced")
    image = image_file(tmp_path, 7)
    await announce(client._config, *image)
    while not (await client.counters()).encodes:
        await asyncio.sleep(0.05)
    await ask_many(client, tmp_path, 8, group=2)
    await client.overlap(*image, [BOX], truth())
    await announce(client._config, tmp_path / "gone.png", "0" * 64)
    counters = await client.counters()
    assert counters.encodes == 8 and counters.requests == 17


async def test_a_group_meets_its_embedding_and_images_spread_over_replicas(make, tmp_path):
    client = make("routed", min_replicas=2, max_replicas=2)
    await ask_many(client, tmp_path, 24, group=8)
    digests = [image_file(tmp_path, grey)[1] for grey in range(24)]
    places = await pids_of(client, digests)
    assert places == await pids_of(client, digests)  # an image's requests go to one replica
    assert set(Counter(places.values())) == set(places.values()) and len(set(places.values())) == 2


async def test_a_replica_killed_under_load_loses_nothing(make, tmp_path):
    client = make(str(tmp_path), gated=True, min_replicas=2, max_replicas=2)
    digests = [image_file(tmp_path, grey)[1] for grey in range(40)]
    pid = (await pids_of(client, digests))[digests[0]]
    (tmp_path / "gate").touch()
    asked = asyncio.ensure_future(ask_many(client, tmp_path, 40, group=2))
    await until(lambda: encodes(tmp_path) == 2)  # each replica is at its first
    os.kill(pid, signal.SIGKILL)
    (tmp_path / "gate").unlink()
    await asked


async def test_the_only_replica_killed_is_replaced_and_nothing_is_lost(make, tmp_path):
    client = make(str(tmp_path), gated=True)
    await ask_many(client, tmp_path, 1)
    (pid,) = (await pids_of(client, ["0" * 64])).values()
    (tmp_path / "gate").touch()
    asked = asyncio.ensure_future(ask_many(client, tmp_path, 40, group=2))
    await until(lambda: encodes(tmp_path) == 2)
    os.kill(pid, signal.SIGKILL)
    (tmp_path / "gate").unlink()
    await asked
    assert (await pids_of(client, ["0" * 64]))["0" * 64] != pid


async def test_when_nobody_answers_in_time_there_is_one_clear_exception(make, tmp_path, monkeypatch):
    client = make(str(tmp_path), attempt_s=2.0, gated=True)
    (tmp_path / "gate").touch()
    await client._started()
    limit_attempts(3, monkeypatch)
    with refused(ServiceError, "service_not_answering", "7.png: ", " 3 attempts", "no answer in 2 s"):
        await client.overlap(*image_file(tmp_path, 7), [BOX], truth())
    (tmp_path / "gate").unlink()


async def test_a_segmenter_that_cannot_be_loaded_is_a_configuration_error(make, tmp_path):
    client = make("cannot load")
    with refused(ConfigError, "no_replica_starts", "samr1.segmenter.service.mode: found ray"):
        await client.overlap(*image_file(tmp_path, 7), [BOX], truth())


JOB = """
import asyncio, ray, sys
from samr1_verl.config import segmenter_config
from samr1_verl.service.ray_client import RayClient, _beat
ray.init(address="auto", namespace="job", logging_level="warning")

@ray.remote(num_cpus=0)
class Worker:
    async def start(self, segmenter):
        self.client = RayClient(segmenter_config(segmenter))
        await self.client._started()
        return True

segmenter = {"backend": "tests.service.fake", "path": sys.argv[1], "device": "cpu", "dtype": "float32"}
ray_section = {"gpus": 0, "cpus": 0, "min_replicas": 1, "max_replicas": 1}
service = {"mode": "ray", "cache_gb": 0.1, "cache_dir": None, "timeout_s": 600, "attempt_s": 300, "ray": ray_section}
workers = [Worker.remote() for _ in range(3)]
ray.get([worker.start.remote(segmenter | {"service": service}) for worker in workers])
print("started", flush=True)
asyncio.run(asyncio.sleep(3600))
"""


async def test_workers_of_two_jobs_start_it_once_and_it_outlives_a_cancelled_job(make, tmp_path):
    log = tmp_path / "loads"
    client = make(f"two jobs:{log}")
    address = ray.get_runtime_context().gcs_address
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, client._config.path],
            env=environment(RAY_ADDRESS=address),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for job in jobs:
            assert job.stdout is not None
            # Ray writes its own lines in between; the end of the output, had the job failed, is no such line.
            lines = iter(job.stdout.readline, "")
            started = await asyncio.wait_for(asyncio.to_thread(lambda: "started\n" in lines), GUARD_S)  # noqa: B023
            assert started, job.communicate()[1]
        assert log.read_text() == "loaded\n"  # once, for six workers of two jobs at once
        before = await pids_of(client, ["0" * 64])
        asked = asyncio.ensure_future(ask_many(client, tmp_path, 30))
        for job in jobs:  # one cancelled as a user does it, one as a scheduler does
            job.send_signal(signal.SIGINT if job is jobs[0] else signal.SIGKILL)
            job.wait(GUARD_S)
        await asked
        assert await pids_of(client, ["0" * 64]) == before
    finally:
        outputs = []
        for job in jobs:
            job.kill()
            outputs.append(job.communicate()[1])
    for output in outputs:  # of three workers each
        assert output.count("samr1: the segmenter runs in process") == 1, output
        assert "device of the test; tests.service.fake" in output and "mode=ray" in output


@pytest.mark.thorough
async def test_the_application_ends_with_its_last_client(make, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_app, "BEAT_S", 0.5)
    monkeypatch.setattr(ray_app, "LINGER_S", 6.0)
    client = make("short")
    name = ray_app.application_name(client._config)
    await ask_many(client, tmp_path, 1)
    client._starter = None  # as if the client's process had ended
    await until(lambda: name not in serve.status().applications)
    client._handle = None
    await ask_many(client, tmp_path, 1)  # a later job starts it again


def test_another_version_or_other_weights_meet_another_application(make, tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    weights.write_bytes(b"some weights")
    config = make(str(weights))._config.model_copy(update={"path": str(weights)})
    names = [ray_app.application_name(config)]
    monkeypatch.setattr(ray_app, "__version__", "9.9.9")
    names.append(ray_app.application_name(config))
    weights.write_bytes(b"others")
    weights_digest.cache_clear()  # a process reads the weights once
    names.append(ray_app.application_name(config))
    assert len(set(names)) == 3


async def test_replicas_beside_workers_that_reserve_every_gpu_get_one_gpu_each(make, tmp_path):
    assert ray.available_resources().get("GPU", 0) == 0
    client = make("shared", gpus="shared", min_replicas=2, max_replicas=2)
    await ask_many(client, tmp_path, 12)
    handle = await client._started()
    seen = [await handle.options(session_id=f"{index:064x}").environment.remote() for index in range(30)]
    assert len({one["pid"] for one in seen}) == 2
    assert {one["CUDA_VISIBLE_DEVICES"] for one in seen} == {"4", "6"}
