"""The engine as a Ray Serve application: replicas anywhere in the cluster, requests routed by the image's digest.

The first process that needs the application starts it through a named actor, so it is started once. Ray Serve's
consistent-hash router sends all requests for an image to the replica that has its embedding. When that replica runs
MAX_ONGOING requests, the next replica in the ring gets them.

verl's placement groups reserve every GPU. With `gpus: shared` a replica therefore reserves no GPU and picks one itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.util.metrics import Gauge

from samr1_verl.config import ConfigError, RayServiceConfig, SegmenterConfig
from samr1_verl.segmenters.base import SegmenterError
from samr1_verl.service.counters import Counters
from samr1_verl.service.engine import engine_of

DEPLOYMENT, NAMESPACE = "segmenter", "samr1"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
MAX_ONGOING = 32  # maximum number of concurrent requests per replica: a few groups of rollouts
TARGET_ONGOING = 16  # concurrent requests per replica at which autoscaling aims
STUCK_S = 300.0  # maximum seconds of one computation; after that Ray Serve replaces the replica
HEALTH_S = 10.0  # seconds between two health checks
# Ray hides the GPUs from actors that reserve none where this variable is 1; older versions: where it is not 0.
KEEP_GPUS = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Replica:
    """A replica of the application: one process with one engine."""

    def __init__(self, config: SegmenterConfig) -> None:
        assert config.service.ray is not None
        if config.service.ray.gpus == "shared":
            os.environ[VISIBLE] = shared_gpu(os.environ.get(VISIBLE), serve.get_replica_context().rank.local_rank)
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
        """This replica's process id and the GPUs that it sees."""
        return {"pid": os.getpid(), VISIBLE: os.environ.get(VISIBLE)}

    def check_health(self) -> None:
        """Raise SegmenterError where a computation takes longer than STUCK_S; else copy the counters to Ray's metrics.

        Ray Serve calls it every HEALTH_S seconds, and replaces a replica that raises.
        """
        if (busy := self._engine.busy_seconds()) > STUCK_S:
            raise SegmenterError(f"the running computation has taken {busy:.0f} s")
        for name, value in vars(self._engine.counters()).items():
            self._gauges[name].set(float(value))


def shared_gpu(visible: str | None, local_rank: int) -> str:
    """The value of CUDA_VISIBLE_DEVICES for a replica that shares GPUs: one GPU per replica, in turn.

    Args:
        visible: CUDA_VISIBLE_DEVICES of the node's Ray processes, whose restriction is kept; None: all GPUs.
        local_rank: number of the replica on its node, from 0.

    Raises:
        ConfigError: the node has no visible GPU.
    """
    if visible is None:
        import torch

        gpus = [str(index) for index in range(torch.cuda.device_count())]
    else:
        gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    if not gpus:
        raise ConfigError(
            f"samr1.segmenter.service.ray.gpus is shared, and this node shows no GPU ({VISIBLE} is {visible!r}). "
            "Set gpus to 0 to run the segmenter on the CPU"
        )
    return gpus[local_rank % len(gpus)]


def deployment_options(config: RayServiceConfig, cluster: Mapping[str, float]) -> dict[str, Any]:
    """The options of the Ray Serve deployment.

    Args:
        config: `samr1.segmenter.service.ray`.
        cluster: the cluster's resources, name to amount. A GPU node has a resource accelerator_type:<model>, which verl
            does not reserve. A replica that shares GPUs reserves a thousandth of it, so that it runs on a GPU node.
    """
    actor: dict[str, Any] = {"num_cpus": config.cpus, "num_gpus": 0.0 if config.gpus == "shared" else config.gpus}
    if config.gpus == "shared":
        actor["runtime_env"] = {"env_vars": {KEEP_GPUS: "0"}}
        kinds = sorted(name for name in cluster if name.startswith("accelerator_type:"))
        actor["resources"] = {kind: 0.001 for kind in kinds[:1]}
    options: dict[str, Any] = {
        "ray_actor_options": actor,
        "max_ongoing_requests": MAX_ONGOING,
        "health_check_period_s": HEALTH_S,
        "health_check_timeout_s": 3 * HEALTH_S,
        "request_router_config": RequestRouterConfig(request_router_class=ROUTER),
    }
    if config.max_replicas > config.min_replicas:
        options["autoscaling_config"] = AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            target_ongoing_requests=TARGET_ONGOING,
        )
    else:
        options["num_replicas"] = config.min_replicas
    return options


def application_name(config: SegmenterConfig) -> str:
    """The name of the application; configurations that can share replicas have the same name."""
    segmenter = config.model_dump_json(exclude={"service"})
    replicas = config.service.model_dump_json(include={"cache_gb", "cache_dir", "cache_dtype", "ray"})
    return f"samr1-{hashlib.sha256((segmenter + replicas).encode()).hexdigest()[:12]}"


class Starter:
    """Starts an application where it does not run yet. A named actor per application runs one call at a time."""

    def start(self, config: SegmenterConfig) -> bool:
        """Start the application and wait until it answers. Returns False where it was already running.

        Raises:
            ConfigError: no replica starts.
        """
        assert config.service.ray is not None
        name = application_name(config)
        running = serve.status().applications.get(name)
        if running is not None and running.status == "RUNNING":
            return False
        serve.start(proxy_location="Disabled")  # requests come through handles; nothing listens on a port
        options = deployment_options(config.service.ray, ray.cluster_resources())
        application = serve.deployment(Replica, name=DEPLOYMENT).options(**options).bind(config)
        try:
            serve.run(application, name=name, route_prefix=None)
        except RuntimeError as error:  # Ray Serve gave up; its status has the replicas' own error
            detail = serve.status().applications[name].deployments[DEPLOYMENT].message
            raise ConfigError(
                f"samr1.segmenter.service.mode is ray, and no replica starts ({error}): {detail}"
            ) from error
        return True


async def start(config: SegmenterConfig) -> Any:
    """The handle of the application, started where needed. Raises ConfigError as `Starter.start`."""
    name = application_name(config)
    # Detached: the actor outlives the worker that made it, and the application outlives the job; later jobs use it.
    starter = (
        ray.remote(Starter)
        .options(name=f"{name}-starter", namespace=NAMESPACE, get_if_exists=True, lifetime="detached", num_cpus=0)
        .remote()
    )
    await starter.start.remote(config)
    return serve.get_deployment_handle(DEPLOYMENT, name)
