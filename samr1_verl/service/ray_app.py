"""The engine as a Ray Serve application: replicas anywhere in the cluster, requests routed by the image's digest.

The first process that needs the application starts it through a named actor, so it is started once. Ray Serve's
consistent-hash router sends all requests for an image to the replica that has its embedding. When that replica runs
MAX_ONGOING requests, the next replica in the ring gets them. The application ends with its last client: every client
reports to the named actor that it is alive.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.util.metrics import Gauge

from samr1_verl import __version__
from samr1_verl.config import ConfigError, SegmenterConfig
from samr1_verl.segmenters import weights_digest
from samr1_verl.segmenters.base import SegmenterError
from samr1_verl.service.counters import Counters
from samr1_verl.service.engine import engine_of
from samr1_verl.service.placement import VISIBLE, deployment_options, take_shared_gpu

DEPLOYMENT, NAMESPACE = "segmenter", "samr1"
STUCK_S = 300.0  # maximum seconds of one computation; after that Ray Serve replaces the replica
BEAT_S = 30.0  # seconds between two signs of life of a client
LINGER_S = 300.0  # seconds without a client after which the application ends, and its GPU memory is free again


class Replica:
    """A replica of the application: one process with one engine."""

    def __init__(self, config: SegmenterConfig) -> None:
        assert config.service.ray is not None
        if config.service.ray.gpus == "shared":
            take_shared_gpu(serve.get_replica_context().rank.local_rank)
        self._engine = engine_of(config)
        self._gauges = {name: Gauge(f"samr1_{name}", f"Engine counter {name}") for name in vars(Counters())}

    async def together(self, method: str, image: str, sha256: str, calls: Sequence[tuple]) -> list[Any]:
        """Run several calls of the engine's `segment` or `overlap` for one image.

        Args:
            method: "segment" or "overlap".
            calls: the arguments of each call after image and digest.

        Returns:
            The results in the order of the calls; an exception in place of the result of a call that failed.
        """
        running = (getattr(self._engine, method)(image, sha256, *arguments) for arguments in calls)
        return await asyncio.gather(*running, return_exceptions=True)

    async def prefetch(self, image: str, sha256: str) -> None:
        """As `engine.Engine.prefetch`."""
        await self._engine.prefetch(image, sha256)

    async def counters(self) -> Counters:
        """The counters of this replica alone."""
        return self._engine.counters()

    async def environment(self) -> dict[str, Any]:
        """This replica's process id, the GPUs that it sees, and the place where it computes, for a log."""
        return {"pid": os.getpid(), VISIBLE: os.environ.get(VISIBLE), "place": self._engine.place()}

    def check_health(self) -> None:
        """Raise SegmenterError where a computation takes longer than STUCK_S; else copy the counters to Ray's metrics.

        Ray Serve calls it every HEALTH_S seconds, and replaces a replica that raises.
        """
        if (busy := self._engine.busy_seconds()) > STUCK_S:
            identity = self._engine.identity
            raise SegmenterError("segmenter_stuck", identity, f"the running computation has taken {busy:.0f} s")
        for name, value in vars(self._engine.counters()).items():
            self._gauges[name].set(float(value))


def application_name(config: SegmenterConfig) -> str:
    """The name of the application. Clients with the same version, weights and configuration share replicas."""
    segmenter = config.model_dump_json(exclude={"service"})
    replicas = config.service.model_dump_json(include={"cache_gb", "cache_dir", "cache_dtype", "ray"})
    content = f"{__version__} {weights_digest(config)} {segmenter} {replicas}"
    return f"samr1-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


class Starter:
    """Starts one application where it does not run yet, and ends it when no client is alive. One actor per application.

    Args:
        name: of the application.
        linger_s: seconds without a client after which the application and this actor end.
    """

    def __init__(self, name: str, linger_s: float = LINGER_S) -> None:
        self._name, self._linger = name, linger_s
        self._jobs: set[str] = set()
        self._busy = threading.Lock()  # held while the application is started or ended
        self._heard = time.monotonic()
        threading.Thread(target=self._end_when_unused, daemon=True).start()

    def start(self, config: SegmenterConfig, job: str) -> bool:
        """Start the application and wait until it answers. Returns whether this is the first call for a Ray job.

        Raises:
            ConfigError: no replica starts.
        """
        with self._busy:
            self.beat()
            self._run(config)
            self.beat()
        first = job not in self._jobs
        self._jobs.add(job)
        return first

    def beat(self) -> None:
        """Note that a client is alive."""
        self._heard = time.monotonic()

    def _run(self, config: SegmenterConfig) -> None:
        assert config.service.ray is not None
        running = serve.status().applications.get(self._name)
        if running is not None and running.status == "RUNNING":
            return
        serve.start(proxy_location="Disabled")  # requests come through handles; nothing listens on a port
        options = deployment_options(config.service.ray, ray.nodes())
        application = serve.deployment(Replica, name=DEPLOYMENT).options(**options).bind(config)
        try:
            serve.run(application, name=self._name, route_prefix=None)
        except RuntimeError as error:  # Ray Serve gave up; its status has the replicas' own error
            detail = serve.status().applications[self._name].deployments[DEPLOYMENT].message
            raise ConfigError(
                "no_replica_starts",
                "samr1.segmenter.service.mode",
                f"found ray, and no replica starts ({error}): {detail}",
            ) from error

    def _end_when_unused(self) -> None:
        while True:
            time.sleep(self._linger / 20)
            with self._busy:
                if time.monotonic() - self._heard > self._linger:
                    if self._name in serve.status().applications:
                        serve.delete(self._name)
                    ray.kill(ray.get_runtime_context().current_actor)  # a later client makes a new one


async def start(config: SegmenterConfig) -> tuple[Any, Any, bool]:
    """Start the application where needed. Raises ConfigError as `Starter.start`.

    Returns:
        The handle of the application, the handle of its `Starter`, and whether this call is the first of its Ray job.
    """
    name = await asyncio.to_thread(application_name, config)  # reads the weights once
    # Detached: the actor outlives the worker that made it, and a later job may use the application.
    starter = (
        ray.remote(Starter)
        .options(
            name=f"{name}-starter",
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_concurrency=2,  # `beat` is heard while `start` runs
        )
        .remote(name, LINGER_S)
    )
    first = await starter.start.remote(config, ray.get_runtime_context().get_job_id())
    return serve.get_deployment_handle(DEPLOYMENT, name), starter, first
