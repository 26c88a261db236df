"""The page of `samr1 compare` in a browser: its figures, every control, hostile text, every width."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.scoring.sample import Sample, write_samples
from tests.evaluation.samples import samples_of
from tests.report.browser import CONTRAST, PHONE, opened, wider_than_the_window
from tests.report.conftest import NASTY

A, B = [20, 4, 0, 9, 16, 12], [18, 16, 9, 9, 20, 0]  # columns of the predicted masks; rows 3 and 0 change least
ORDER = ["test:1", "test:5", "test:2", "test:4", "test:0"]  # by change


def spoiled(sample: Sample) -> Sample:
    return sample.model_copy(
        update={"sentence": f"{NASTY} {sample.index}", "response": f"<think>{NASTY}</think><answer>{NASTY}</answer>"}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """c.json and c.html of a comparison; every sentence and response has markup."""
    folder = tmp_path_factory.mktemp("comparison")
    for name, columns in (("a", A), ("b", B)):
        write_samples([spoiled(sample) for sample in samples_of(columns)], folder / f"{name}.jsonl")
    arguments = ["compare", str(folder / "a.jsonl"), str(folder / "b.jsonl")]
    done = CliRunner().invoke(app, [*arguments, "--json", str(folder / "c.json"), "--out", str(folder / "c.html")])
    assert done.exit_code == 0, done.output
    assert "image not shown: 1.png: " in done.output
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> str:
    return (folder / "c.html").as_uri()


def rows(tab) -> list[str]:
    return [card.get_attribute("data-row") for card in tab.query_selector_all(".card")]


@pytest.mark.thorough
def test_figures_and_rows_are_those_of_the_comparison(chromium, folder, url):
    content = json.loads((folder / "c.json").read_text())
    with opened(chromium, url) as tab:
        for name in ("giou", "ciou"):
            shown, figure = tab.inner_text(f"[data-figure={name}]"), content[name]
            assert f"{figure['a']:.4f} → {figure['b']:.4f} (+{figure['difference']:.4f})" in shown
            assert f"p {figure['p']:.4f}" in shown and "no difference found" in shown and "99 % interval" in shown
        assert "3 better in B, 2 worse, 1 alike" in tab.inner_text("#summary") and "at most 2 %" in tab.inner_text(
            "main"
        )
        assert rows(tab) == ORDER
        card = tab.locator(".card[data-row='test:5']")
        ious = card.locator("[data-score=iou] b").all_inner_texts()
        assert ious == ["0.600", "0.000"] and card.locator(".chip.bad").inner_text() == "no answer"
        assert "-0.600" in card.inner_text() and card.locator(".viewer").count() == 2


@pytest.mark.thorough
def test_every_control_works(chromium, url):
    with opened(chromium, url) as tab:
        tab.select_option("#direction", "better")
        assert rows(tab) == ["test:1", "test:2", "test:4"] and "3 of 5 rows" in tab.inner_text("#count")
        tab.select_option("#direction", "worse")
        assert rows(tab) == ["test:5", "test:0"]
        tab.select_option("#direction", "")
        for layer in ("mask", "truth"):
            tab.uncheck(f"#layer-{layer}")
            assert tab.locator(f".card canvas.{layer}").count() == 0
            tab.click("h1")
            tab.keyboard.press(layer[0])
            assert tab.locator(f".card canvas.{layer}").count() == 2 * len(ORDER)
        for layer in ("box", "points"):
            tab.uncheck(f"#layer-{layer}")
        tab.locator(".card .open").first.click()
        assert tab.locator("#sample .viewer").count() == 2
        tab.keyboard.press("m")
        assert tab.locator("#sample canvas.mask").count() == 0
        tab.click("#sample .close")
        assert tab.is_hidden("#sample")
        tab.click("#theme")
        tab.click("#open-help")
        assert tab.is_visible("#help")


@pytest.mark.thorough
def test_markup_is_text(chromium, url):
    with opened(chromium, url) as tab:
        assert NASTY in tab.locator(".card .open").first.inner_text()
        tab.locator(".card .open").first.click()
        assert NASTY in tab.locator("#sample .thought").first.inner_text()
        assert tab.evaluate("window.ran") is None and tab.locator("img[src=x]").count() == 0


@pytest.mark.thorough
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_needs_no_sideways_scroll_and_text_has_contrast(chromium, url, scheme):
    with opened(chromium, url, PHONE, color_scheme=scheme, has_touch=True) as tab:
        assert wider_than_the_window(tab) <= 0
        contrast, text = tab.evaluate(CONTRAST)
        assert contrast >= 4.5, text
