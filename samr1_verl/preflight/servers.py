"""A check of the servers of `samr1.segmenter.service.mode=http`: they have one segmenter.

A client takes answers of one segmenter only. Two reward workers could still take two, each the one that it asked first.
So the preflight asks all servers, before the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from samr1_verl.config import Samr1Config
from samr1_verl.service.client import service_problems
from samr1_verl.service.wire import Health

ASK_S, ANSWER_BYTES = 3.0, 65_536  # limits of one answer of /health


def check_servers(settings: Samr1Config) -> Iterator[str]:
    """All servers that answer have one segmenter, and where `http.identity` is set, that one.

    A server that does not answer may still be starting: the run waits `timeout_s` for it.
    """
    service, key = settings.segmenter.service, "samr1.segmenter.service.http"
    if service.mode != "http" or service.http is None or list(service_problems(service)):
        return
    addresses, expected = service.http.addresses, service.http.identity
    with ThreadPoolExecutor(len(addresses)) as pool:
        answers = dict(zip(addresses, pool.map(identity_of, addresses), strict=True))
    found = {address: identity for address, identity in answers.items() if identity is not None}
    wrong = {address: identity for address, identity in found.items() if expected not in (None, identity)}
    listed = "; ".join(f"{address} has {identity}" for address, identity in (wrong or found).items())
    if wrong:
        yield f"{key}.identity is {expected}, but {listed}. Start these servers with the run's weights and options"
    elif len(set(found.values())) > 1:
        yield (
            f"{key}.addresses: {listed}. Scores of two segmenters must not be mixed: start every server with the same "
            "weights and options"
        )


def identity_of(address: str) -> str | None:
    """The identity of a server's segmenter; None: the server does not answer, or not as `samr1 serve`."""
    # Imported here: httpx and tenacity are not installed everywhere.
    from samr1_verl.service.http_pool import fetch
    from samr1_verl.service.retry import TransientError

    try:
        return Health.model_validate_json(fetch(f"{address}/health", {}, ANSWER_BYTES, ASK_S).content).segmenter
    except (TransientError, ValidationError):
        return None
