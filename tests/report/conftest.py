"""A browser, and small runs with known figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import make_run
from data.fetch_chromium import launch
from samr1_verl.report.page import report
from samr1_verl.report.run import EVENTS, Run, read_run

NASTY = '<script>window.ran = 1</script><img src=x onerror="window.ran = 2">&amp; </script><!-- "quoted"'


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Of one module: Playwright keeps an event loop running, beside which no asynchronous test can run."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four steps of six rows, 400x300."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    make_run(folder, steps=4, rows=6, seed=1, size=(300, 400))
    return read_run(folder)


@pytest.fixture(scope="session")
def other(run: Run) -> Run:
    """The same rows, other answers: the samples of the steps in the opposite order, and none of the first step."""
    steps = list(run.samples)
    samples = dict(zip(steps[1:], list(reversed(run.samples.values()))[:-1], strict=True))
    curves = {tag: {step: value / 2 for step, value in curve.items()} for tag, curve in run.curves.items()}
    return dataclasses.replace(run, folder=run.folder.with_name("second"), samples=samples, curves=curves)


@pytest.fixture(scope="session")
def nasty(run: Run) -> Run:
    """The run with markup in all that a policy or a data set may have written."""
    spoiled = {
        step: [
            one.model_copy(
                update={
                    "sentence": f"{NASTY} {one.sentence}",
                    "category": NASTY,
                    "data_source": NASTY,
                    "response": f"<think>{NASTY}</think><answer>{NASTY}</answer>",
                }
            )
            for one in samples
        ]
        for step, samples in run.samples.items()
    }
    curves = {**run.curves, f"reward/{NASTY.replace('/', '')}": {1: 0.5, 2: 0.25}}
    return dataclasses.replace(run, folder=run.folder.with_name("<b>third"), samples=spoiled, curves=curves)


def logged(folder: Path) -> dict[str, dict[int, float]]:
    """The scalars of a run's event files, record by record: tag → step → value."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, dict[int, float]] = {}
    for file in sorted((folder / EVENTS).iterdir()):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.tensor.float_val[0]
    return found


def page_of(folder: Path, *runs: Run) -> str:
    """The URL of the runs' report, written to a folder."""
    path = folder / "report.html"
    path.write_text(report(runs)[0], encoding="utf-8")
    return path.as_uri()
