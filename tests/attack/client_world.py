"""A sound answer to one request, and clients of the servers that give it or another one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samr1_verl.config import HttpServiceConfig
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.service import http_client, retry
from samr1_verl.service.http_client import HttpClient
from tests.attack.hostile_server import Behaviour
from tests.service.fake import image_file
from tests.waiting import GUARD_S

SIZE = (10, 20)
BOX = Prompt((2, 1, 8, 5))
MASK = np.zeros(SIZE, bool)
MASK[1:5, 2:8] = True
TRUTH = GroundTruth(size=SIZE, masks=(encode_rle(np.roll(MASK, 3, axis=1)),))
RIGHT = Overlap(PixelCounts(12, 36), 0.5)
COUNTS = {"intersection": 12, "union": 36, "ignored": 0, "ignored_predicted": 0, "iou": 1 / 3, "score": 0.5}
PREDICTION = {"score": 0.5, "mask": encode_rle(MASK)}
SOUND = {"segmenter": "boxes/1", "size": list(SIZE), "overlap": COUNTS, "predictions": [PREDICTION]}


def client_of(*addresses: str, timeout_s: float = 2 * GUARD_S, attempt_s: float = GUARD_S, **more: Any) -> HttpClient:
    """A client whose attempts end before their time, but for those at a server that never answers."""
    return HttpClient(HttpServiceConfig(addresses=addresses, **more), timeout_s, attempt_s)


def limit_attempts(attempts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every request end after some attempts, and an address that failed be tried last; else time decides both."""
    limited = partial(retry.Patience, attempts=attempts, first_pause_s=0.01, longest_pause_s=0.01)
    monkeypatch.setattr(retry, "Patience", limited)
    monkeypatch.setattr(http_client, "COOL_S", GUARD_S)


def always(*pieces: bytes) -> Behaviour:
    return lambda line, body: pieces


def changed(**changes: Any) -> dict[str, Any]:
    """The sound answer, with other values in its overlap."""
    return SOUND | {"overlap": COUNTS | changes}


def first_at(client: HttpClient, address: str, folder: Path) -> tuple[Path, str]:
    """An image whose requests go to this address first."""
    images = (image_file(folder, grey) for grey in range(250))
    return next(image for image in images if client._order(image[1])[0] == address)
