"""The engine as a Ray Serve application: replicas anywhere in the cluster, requests routed by the image's digest.

The first process that needs the application starts it, through a named actor, so it is started once. Ray Serve's
consistent-hash router sends an image's requests to one replica, which has its embedding, and on to the next in the ring
when that replica has as many requests as it takes.

Beside verl, whose placement groups reserve every GPU, `gpus: shared` asks Ray for none and picks one itself.
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
MAX_ONGOING = 32  # requests of a replica; a group and some of the next, then the next replica helps
TARGET_ONGOING = 16  # of a replica, that autoscaling aims at
STUCK_S = 300.0  # a computation that takes longer is none any more: Ray Serve replaces the replica
HEALTH_S = 10.0
# Where this is 1, and in older versions wherever it is not 0, Ray hides the GPUs from actors that reserve none.
KEEP_GPUS = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Replica:
    """One engine."""

    def __init__(self, config: SegmenterConfig) -> None:
        assert config.service.ray is not None
        if config.service.ray.gpus == "shared":
            os.environ[VISIBLE] = shared_gpu(os.environ.get(VISIBLE), serve.get_replica_context().rank.local_rank)
        self._engine = engine_of(config)
        self._gauges = {name: Gauge(f"samr1_{name}", f"Engine counter {name}") for name in vars(Counters())}

    async def together(self, method: str, image: str, sha256: str, calls: Sequence[tuple]) -> list[Any]:
        """Several calls of the engine's `segment` or `overlap` about one image.

        Returns:
            Their results in order, the exception where one failed.
        """
        asked = (getattr(self._engine, method)(image, sha256, *arguments) for arguments in calls)
        return await asyncio.gather(*asked, return_exceptions=True)

    async def prefetch(self, image: str, sha256: str) -> None:
        await self._engine.prefetch(image, sha256)

    async def counters(self) -> Counters:
        """Of this replica alone."""
        return self._engine.counters()

    async def environment(self) -> dict[str, Any]:
        """Where this replica is: its process and the GPUs it sees."""
        return {"pid": os.getpid(), VISIBLE: os.environ.get(VISIBLE)}

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica when it raises; reports the counters to Ray's metrics."""
        if (busy := self._engine.busy_seconds()) > STUCK_S:
            raise SegmenterError(f"the running computation has taken {busy:.0f} s")
        for name, value in vars(self._engine.counters()).items():
            self._gauges[name].set(float(value))


def shared_gpu(visible: str | None, local_rank: int) -> str:
    """The value of CUDA_VISIBLE_DEVICES for a replica that shares GPUs, one each in turn.

    Args:
        visible: the variable as the node's Ray processes have it, so that a node's own restriction holds; None: all.
        local_rank: of the replica, among those of its node.

    Raises:
        ConfigError: there is no GPU.
    """
    if visible is None:
        import torch

        gpus = [str(index) for index in range(torch.cuda.device_count())]
    else:
        gpus = [one.strip() for one in visible.split(",") if one.strip()]
    if not gpus:
        raise ConfigError(
            f"samr1.segmenter.service.ray.gpus is shared, and this node shows no GPU ({VISIBLE} is {visible!r}). "
            "Set it to 0 to run on the CPU"
        )
    return gpus[local_rank % len(gpus)]


def deployment_options(config: RayServiceConfig, cluster: Mapping[str, float]) -> dict[str, Any]:
    """What Ray Serve is asked for.

    Args:
        config: `samr1.segmenter.service.ray`.
        cluster: the cluster's resources. A GPU node has one named accelerator_type:<model>, which nobody reserves:
            a thousandth of it keeps replicas that share GPUs off nodes that have none.
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
    """Equal for configurations that can share replicas."""
    segmenter = config.model_dump_json(exclude={"service"})
    replicas = config.service.model_dump_json(include={"cache_gb", "cache_dir", "cache_dtype", "ray"})
    return f"samr1-{hashlib.sha256((segmenter + replicas).encode()).hexdigest()[:12]}"


class Starter:
    """Starts an application that does not run. One named actor per application, so two requests follow each other."""

    def start(self, config: SegmenterConfig) -> bool:
        """Returns when the application answers; whether this call started it."""
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
        except RuntimeError as error:  # Ray Serve gave up: the replicas' own fault is in its log
            detail = serve.status().applications[name].deployments[DEPLOYMENT].message
            raise ConfigError(
                f"samr1.segmenter.service.mode is ray, and no replica starts ({error}): {detail}"
            ) from error
        return True


async def start(config: SegmenterConfig) -> Any:
    """The handle of the application, which runs then."""
    name = application_name(config)
    # Detached: it outlives the worker that was first, and the application outlives the job, for the next one to use.
    starter = (
        ray.remote(Starter)
        .options(name=f"{name}-starter", namespace=NAMESPACE, get_if_exists=True, lifetime="detached", num_cpus=0)
        .remote()
    )
    await starter.start.remote(config)
    return serve.get_deployment_handle(DEPLOYMENT, name)
