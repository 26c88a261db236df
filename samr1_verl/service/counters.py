"""The counters of an engine, exported to Prometheus and to Ray."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Counters:
    """The work of an engine since it was made.

    A request that finds its embedding in memory (`hits`) waits for its decode only; the others wait for an encode, be
    it their own, another's or one ahead of time, or for the folder.
    """

    requests: int = 0
    hits: int = 0
    encodes: int = 0  # images encoded
    disk_hits: int = 0  # embeddings read from the cache folder
    decodes: int = 0  # prompts decoded; equal ones that wait together count once
    cached_bytes: int = 0  # of embeddings in memory now
    queued: int = 0  # computations that wait now
    encode_seconds: float = field(default=0.0, compare=False)
    decode_seconds: float = field(default=0.0, compare=False)
    wait_seconds: float = field(default=0.0, compare=False)  # that requests waited for embeddings, summed
