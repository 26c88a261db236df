"""The corpus through `POST /v1/score`, asked over HTTP by the client of examples/: the results of plain calls."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import samr1_verl
from examples.score_client import score
from samr1_verl.scoring.route import RowFiles, score_route
from samr1_verl.service.engine import Engine
from samr1_verl.service.http_server import Limits, create_app
from tests.service.servers import free_port
from tests.trainers.corpus import REWARDS, Batch, batches
from tests.trainers.corpus import segmenter as boxes
from tests.trainers.table import check_scores


@contextmanager
def server(engine: Engine, root: Path) -> Iterator[str]:
    port = free_port()
    app = create_app(engine, [root], None, Limits(), [score_route(RowFiles([]))])
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join()


def row_of(item: dict[str, Any]) -> dict[str, Any]:
    """An item as a row in full."""
    extra = item["extra_info"]
    return {
        "data_source": item["data_source"],
        "ground_truth": json.loads(item["reward_model"]["ground_truth"]),
        "image": {"sha256": extra["sha256"], "path": extra["image"]},
        "policy_size": extra["policy_size"],
        "frame": extra["frame"],
    }


def ask(address: str, reward: str, batch: Batch) -> list[dict[str, float]]:
    """A batch in requests of ten answers: a request has at most 2 MB."""
    rows, config = [row_of(batch.item)], REWARDS[reward]
    texts = [{"row": 0, "response": text} for text in batch.answers]
    return [
        one
        for first in range(0, len(texts), 10)
        for one in score(address, reward, rows, texts[first : first + 10], config)
    ]


@pytest.mark.thorough
def test_results_are_those_of_a_plain_call(corpus: Path) -> None:
    engine = boxes()
    with server(engine, corpus) as address:

        def through_the_route(call: Any, kwargs: dict[str, Any], batch: Batch) -> list[float]:
            found = ask(address, call.__module__.rpartition(".")[2], batch)
            assert found == batch.scores, "every key, to the bit"
            return [one["score"] for one in found]

        served = [reward for reward in REWARDS if reward != "dr_seg"]  # it ranks, so no answer has a reward of its own
        check_scores(corpus, "route", samr1_verl.__version__, through_the_route, rewards=served)
    engine.close()


@pytest.mark.slow
def test_a_fault_of_the_segmenter_is_an_error(corpus: Path) -> None:
    engine = boxes()
    engine._segmenter.fault = RuntimeError("out of memory")
    with server(engine, corpus) as address, pytest.raises(urllib.error.HTTPError, match="500"):
        ask(address, "samr1", next(batches(corpus, "samr1")))
    engine.close()
