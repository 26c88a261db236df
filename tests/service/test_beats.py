"""The signs of life that a client of the Ray Serve application gives, and the end of an application without any."""

from __future__ import annotations

import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from samr1_verl.service import ray_app
from samr1_verl.service.ray_client import RayClient, _beat
from tests.waiting import GUARD_S, wait_until


def test_a_client_stays_alive_for_the_next_cluster_when_one_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, looked, beats = [], [], []

    class Starter:
        def __init__(self, ended: bool) -> None:
            self._ended, self.beat = ended, self

        def remote(self) -> None:
            tried.append(self)
            if self._ended:  # what Ray raises for an actor of another cluster
                raise Exception("Failed to submit task to actor: It might be dead or it's from a different cluster")
            beats.append(self)

    monkeypatch.setattr(ray_app, "BEAT_S", 0.01)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    config: Any = SimpleNamespace(service=None)  # it asks for nothing
    client = RayClient(config)
    client._starter = Starter(ended=True)
    thread = threading.Thread(target=_beat, args=(weakref.ref(client),))
    thread.start()
    wait_until(lambda: len(tried) > 2)
    with monkeypatch.context() as between:
        between.setattr(ray, "is_initialized", lambda: looked.append(1))
        wait_until(lambda: len(looked) > 2)
    assert thread.is_alive() and not beats
    client._starter = Starter(ended=False)
    wait_until(lambda: beats)
    del client
    thread.join(GUARD_S)
    assert not thread.is_alive(), "it ends with its client"


def test_an_application_ends_when_no_client_gave_a_sign_of_life_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now, deleted = [0.0], []

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] <= 1000:
            starter.beat()

    def end(actor: str) -> None:
        assert actor == "itself"
        raise SystemExit

    no_thread = SimpleNamespace(Lock=threading.Lock, Thread=lambda **_: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr(ray_app, "threading", no_thread)
    monkeypatch.setattr(ray_app, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(ray_app.serve, "status", lambda: SimpleNamespace(applications={"this": None, "other": None}))
    monkeypatch.setattr(ray_app.serve, "delete", deleted.append)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(current_actor="itself"))
    monkeypatch.setattr(ray, "kill", end)
    starter = ray_app.Starter("this", linger_s=100)
    with pytest.raises(SystemExit):
        starter._end_when_unused()
    assert deleted == ["this"] and 1100 < now[0] <= 1110
