"""The Ray Serve application in a real cluster: started once, routed by digest, and no fault is lost or scored as 0."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
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
from samr1_verl.service.ray_client import RayClient, _beat
from samr1_verl.service.retry import ServiceError
from tests.errors import refused
from tests.service.fake import image_file
from tests.service.servers import environment

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

    def make(name: str, seconds: float = 0.0, timeout_s: float = 120.0, attempt_s: float = 60.0, **options: Any) -> Any:
        service = {"mode": "ray", "cache_gb": 0.1, "cache_dir": None, "ray": RAY | options}
        service |= {"timeout_s": timeout_s, "attempt_s": attempt_s}
        what = {"backend": "tests.service.fake", "path": f"{name},{seconds}", "device": "cpu", "dtype": "float32"}
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
    client, image, cancelled = make("plain"), image_file(tmp_path, 7), asyncio.Event()

    async def hang(*_: Any) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(client, "_request", hang)
    asked = [asyncio.ensure_future(client.overlap(*image, [BOX], truth())) for _ in range(2)]
    await asyncio.sleep(0.1)
    asked[0].cancel()
    await asyncio.sleep(0)
    assert not cancelled.is_set()
    asked[1].cancel()
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_what_is_announced_needs_no_encode_when_it_is_asked(make, tmp_path):
    client = make("announced")
    image = image_file(tmp_path, 7)
    await announce(client._config, *image)
    await asyncio.sleep(0.5)
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
    client = make("killed", seconds=0.05, min_replicas=2, max_replicas=2)
    digests = [image_file(tmp_path, grey)[1] for grey in range(40)]
    pid = (await pids_of(client, digests))[digests[0]]
    asked = asyncio.ensure_future(ask_many(client, tmp_path, 40, group=2))
    await asyncio.sleep(0.5)
    assert not asked.done()
    os.kill(pid, signal.SIGKILL)
    await asked


async def test_the_only_replica_killed_is_replaced_and_nothing_is_lost(make, tmp_path):
    client = make("alone", seconds=0.05)
    await ask_many(client, tmp_path, 1)
    (pid,) = (await pids_of(client, ["0" * 64])).values()
    asked = asyncio.ensure_future(ask_many(client, tmp_path, 40, group=2))
    await asyncio.sleep(0.5)
    assert not asked.done()
    os.kill(pid, signal.SIGKILL)
    await asked
    assert (await pids_of(client, ["0" * 64]))["0" * 64] != pid


async def test_when_nobody_answers_in_time_there_is_one_clear_exception(make, tmp_path):
    client = make("slow", seconds=30.0, timeout_s=6.0, attempt_s=2.0)
    await client._started()
    with refused(ServiceError, "service_not_answering", "7.png: ", " 6 s ") as found:
        await client.overlap(*image_file(tmp_path, 7), [BOX], truth())
    assert re.search(r" [2-9] attempts", str(found.value))


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
service = {"mode": "ray", "cache_gb": 0.1, "cache_dir": None, "timeout_s": 120.0, "attempt_s": 60.0, "ray": ray_section}
workers = [Worker.remote() for _ in range(3)]
ray.get([worker.start.remote(segmenter | {"service": service}) for worker in workers])
print("started", flush=True)
asyncio.run(asyncio.sleep(600))
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
            started = await asyncio.wait_for(asyncio.to_thread(lambda: "started\n" in lines), 120)  # noqa: B023
            assert started, job.communicate()[1]
        assert log.read_text() == "loaded\n"  # once, for six workers of two jobs at once
        before = await pids_of(client, ["0" * 64])
        asked = asyncio.ensure_future(ask_many(client, tmp_path, 30))
        for job in jobs:  # one cancelled as a user does it, one as a scheduler does
            job.send_signal(signal.SIGINT if job is jobs[0] else signal.SIGKILL)
            job.wait(60)
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
    await asyncio.sleep(9)
    assert serve.status().applications[name].status == "RUNNING", "its client is alive and asks for nothing"
    client._starter = None  # as if the client's process had ended
    for _ in range(60):
        if name not in serve.status().applications:
            break
        await asyncio.sleep(0.5)
    assert name not in serve.status().applications
    client._handle = None
    await ask_many(client, tmp_path, 1)  # a later job starts it again


def test_a_client_stays_alive_for_the_next_cluster_when_one_has_ended(monkeypatch):
    beats = []

    class Starter:
        def __init__(self, ended: bool) -> None:
            self._ended, self.beat = ended, self

        def remote(self) -> None:
            if self._ended:  # what Ray raises for an actor of another cluster
                raise Exception("Failed to submit task to actor: It might be dead or it's from a different cluster")
            beats.append(time.monotonic())

    monkeypatch.setattr(ray_app, "BEAT_S", 0.01)
    config: Any = SimpleNamespace(service=None)  # it asks for nothing
    client = RayClient(config)
    client._starter = Starter(ended=True)
    thread = threading.Thread(target=_beat, args=(weakref.ref(client),))
    thread.start()
    time.sleep(0.1)
    with monkeypatch.context() as between:
        between.setattr(ray, "is_initialized", lambda: False)
        time.sleep(0.1)
    assert thread.is_alive() and not beats
    client._starter = Starter(ended=False)
    while not beats:
        time.sleep(0.01)
    del client
    thread.join(10)
    assert not thread.is_alive(), "it ends with its client"


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
