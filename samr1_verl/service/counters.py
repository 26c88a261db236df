"""The counters of an engine, exported to Prometheus and to Ray."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Counters:
    """The work of an engine since it was made. All are sums, except `cached_bytes` and `queued`: their present values.

    A request whose embedding is in memory (`hits`) waits for its decode only. Every other request also waits for an
    encode, which it started itself, another request started or `prefetch` started, or for a read from the cache folder.
    """

    requests: int = 0
    hits: int = 0  # requests whose embedding was in memory
    encodes: int = 0  # images encoded
    disk_hits: int = 0  # embeddings read from the cache folder
    decodes: int = 0  # prompts decoded; equal prompts that wait together count once
    uploads: int = 0  # embeddings copied from host memory to a GPU for a decode
    cached_bytes: int = 0  # size of the embeddings in memory
    queued: int = 0  # computations that wait
    encode_seconds: float = field(default=0.0, compare=False)
    decode_seconds: float = field(default=0.0, compare=False)
    wait_seconds: float = field(default=0.0, compare=False)  # time that requests waited for embeddings


class Tally:
    """The counters while they grow, from any thread."""

    def __init__(self) -> None:
        self._counters = Counters()
        self._lock = threading.Lock()

    def add(self, **more: float) -> None:
        """Add to counters by name."""
        with self._lock:
            sums = {name: getattr(self._counters, name) + number for name, number in more.items()}
            self._counters = replace(self._counters, **sums)

    def read(self, **present: int) -> Counters:
        """The counters now, with present values by name."""
        with self._lock:
            return replace(self._counters, **present)
