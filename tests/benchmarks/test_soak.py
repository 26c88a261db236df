"""The soak test for twenty seconds: nothing is lost or wrong, and hostile requests are refused."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak import GROWTH, Tally, figures, soak
from benchmarks.soak_attacks import ATTACKS, survived
from samr1_verl.service.wire import TOKEN_VARIABLE


@pytest.mark.thorough
@pytest.mark.slow
def test_twenty_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "")  # the soak sets its own; other tests must not find it afterwards
    found = asyncio.run(soak(1 / 3, tmp_path))
    assert found["valid"] > 0 and found["lost"] == found["wrong"] == 0, found["messages"]
    assert found["hostile_requests"] > 0 and all(
        map(survived, {kind for kinds in found["hostile"].values() for kind in kinds})
    )
    assert found["disturbed"]["kills"] >= 1 and sum(found["disturbed"].values()) > 5


def tally(**changes: list[str]) -> Tally:
    hostile = defaultdict(Counter, {name: Counter({"422": 3}) for name in ATTACKS})
    return replace(Tally(seconds=[1.0], hostile=hostile), **changes)


MEMORY = [(second, 100) for second in range(600)]


def test_a_sound_soak_passes() -> None:
    assert figures(tally(), MEMORY, 600.0)["ok"]


@pytest.mark.parametrize("change", [{"lost": ["no address answers"]}, {"wrong": ["another overlap"]}])
def test_a_lost_or_wrong_answer_is_a_failure(change: dict) -> None:
    assert not figures(tally(**change), MEMORY, 600.0)["ok"]


@pytest.mark.parametrize("outcome", ["200", "500", "no answer", "still open", None])
def test_a_hostile_request_that_was_not_refused_or_not_tried_is_a_failure(outcome: str | None) -> None:
    bad = tally()
    bad.hostile["bomb"] = Counter() if outcome is None else Counter({"422": 3, outcome: 1})
    found = figures(bad, MEMORY, 600.0)
    assert not found["ok"] and list(found["not_survived"]) == ["bomb"]


def test_memory_that_grows_is_a_failure() -> None:
    grown = [(second, 100 + second // 60) for second in range(600)]
    found = figures(tally(), grown, 600.0)
    assert found["growth"] > GROWTH and not found["ok"]
