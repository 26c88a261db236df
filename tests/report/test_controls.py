"""Every control of the report, used in a browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.report.browser import opened
from tests.report.conftest import page_of


@pytest.fixture(scope="module")
def url(run, tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("one"), run)


def keys(tab):
    """The rows whose cards are shown, in order."""
    return [card.get_attribute("data-row") for card in tab.query_selector_all(".card")]


@pytest.mark.thorough
def test_steps_move_by_slider_buttons_keys_and_play(chromium, url):
    with opened(chromium, url) as tab:
        step = tab.locator("#step-name")
        assert step.inner_text() == "step 4 of 4"
        tab.click("#previous")
        assert step.inner_text() == "step 3 of 4"
        tab.locator("body").press("ArrowLeft")
        assert step.inner_text() == "step 2 of 4" and "step=2" in tab.url
        tab.click("#next")
        tab.fill("#step", "0")
        assert step.inner_text() == "step 1 of 4"
        tab.click("#play")
        expect(tab.locator("#step-name")).to_have_text("step 4 of 4")
        expect(tab.locator("#play")).to_have_text("Play")
        tab.click("h1")
        tab.keyboard.press(" ")
        assert step.inner_text() == "step 1 of 4"
        tab.keyboard.press(" ")


@pytest.mark.thorough
def test_filters_leave_the_rows_that_fit(chromium, run, url):
    last = run.samples[4]
    name = {(one.data_source, one.index): f"{one.data_source}:{one.index}" for one in last}
    with opened(chromium, url) as tab:
        rows = keys(tab)
        assert rows == list(name.values())
        tab.click("#filters > summary")
        tab.select_option("#source", "noise_1")
        assert keys(tab) == [key for key in rows if key.startswith("noise_1")]
        tab.click("#clear")
        for value, fits in (("usable", lambda r: r is None), ("unusable", lambda r: r is not None)):
            tab.select_option("#reason", value)
            assert keys(tab) == [name[one.data_source, one.index] for one in last if fits(one.reason)]
        tab.select_option("#reason", "")
        tab.select_option("#by", "acc")
        scores = sorted(one.scores["acc"] for one in last)
        tab.fill("#min", str(scores[2]))
        tab.fill("#max", str(scores[4]))
        wanted = {name[one.data_source, one.index] for one in last if scores[2] <= one.scores["acc"] <= scores[4]}
        assert set(keys(tab)) == wanted and len(wanted) == 3
        assert "3 of 6" in tab.inner_text("#count")
        tab.click("#clear")
        word = last[3].response.split()[40]
        tab.fill("#q", word)
        assert keys(tab) == [name[one.data_source, one.index] for one in last if word in one.response]
        tab.fill("#q", "nothing like it")
        assert keys(tab) == [] and tab.is_visible("#none")
        tab.click("#clear")
        for order, sign in (("worst", 1), ("best", -1)):
            tab.select_option("#sort", order)
            ordered = sorted(last, key=lambda one: sign * one.scores["acc"])
            assert keys(tab) == [name[one.data_source, one.index] for one in ordered]
        tab.select_option("#sort", "gain")
        gain = {
            now.index: now.scores["acc"] - then.scores["acc"] for now, then in zip(last, run.samples[1], strict=True)
        }
        assert [int(key.split(":")[1]) for key in keys(tab)] == sorted(gain, key=lambda index: -gain[index])


@pytest.mark.thorough
def test_layers_are_toggled_by_box_and_by_key(chromium, url):
    drawn = {"mask": "canvas.mask", "truth": "canvas.truth", "box": "rect.box", "points": ".point"}
    with opened(chromium, url) as tab:
        for layer, mark in drawn.items():
            there = tab.locator(f".card {mark}").count()
            assert there > 0
            tab.uncheck(f"#layer-{layer}")
            assert tab.locator(f".card {mark}").count() == 0
            tab.locator("h1").click()
            tab.keyboard.press(layer[0])
            assert tab.locator(f".card {mark}").count() == there and tab.is_checked(f"#layer-{layer}")


@pytest.mark.thorough
def test_a_row_opens_large_and_is_browsed(chromium, run, url):
    with opened(chromium, url) as tab:
        tab.locator(".card .open").nth(1).focus()
        tab.keyboard.press("Enter")
        title = tab.locator("#sample-title")
        assert title.inner_text() == run.samples[4][1].sentence
        tab.click("#row-on")
        assert title.inner_text() == run.samples[4][2].sentence
        tab.click("#row-back")
        tab.keyboard.press("k")
        assert title.inner_text() == run.samples[4][0].sentence
        tab.keyboard.press("j")
        tab.click("#step-back")
        assert tab.inner_text("#sample-step") == "step 3"
        tab.click("#step-on")
        tab.keyboard.press("ArrowLeft")
        assert tab.inner_text("#sample-step") == "step 3"
        tab.locator("#sample .plot").click(position={"x": 60, "y": 60})
        assert tab.inner_text("#sample-step") == "step 1"
        tab.click("#sample .close")
        expect(tab.locator("#sample")).to_be_hidden()
        expect(tab).not_to_have_url(re.compile("row="))
        tab.locator(".card .viewer").first.click(force=True)  # a card opens wherever it is clicked
        expect(tab.locator("#sample")).to_be_visible()
        tab.keyboard.press("Escape")
        assert tab.is_hidden("#sample")


@pytest.mark.thorough
def test_a_link_opens_the_same_view(chromium, url):
    with opened(chromium, url) as tab:
        tab.fill("#step", "1")
        tab.uncheck("#layer-truth")
        tab.click("#filters > summary")
        tab.select_option("#source", "noise_0")
        tab.fill("#smooth", "0.5")
        rows, link = keys(tab), tab.url
    with opened(chromium, link) as tab:
        assert keys(tab) == rows and tab.inner_text("#step-name") == "step 2 of 4"
        assert not tab.is_checked("#layer-truth") and tab.input_value("#source") == "noise_0"
        assert tab.inner_text("#smooth-value") == "0.5"
        tab.evaluate("location.hash = '#step=3'")
        expect(tab.locator("#step-name")).to_have_text("step 3 of 4")
        assert len(keys(tab)) == 6 and tab.is_checked("#layer-truth")


@pytest.mark.thorough
def test_charts_are_read_by_pointer_and_by_keyboard(chromium, run, url):
    rewards = run.curves["reward/score"]
    with opened(chromium, url) as tab:
        chart = tab.locator(".chart").first
        value, when = chart.locator("output").first, chart.locator(".when")
        assert float(value.inner_text()) == pytest.approx(rewards[4], rel=1e-3) and "last" in when.inner_text()
        box = chart.locator(".plot").bounding_box()
        tab.mouse.move(box["x"] + box["width"] * 46 / 420, box["y"] + 50)
        assert when.inner_text() == "step 1" and float(value.inner_text()) == pytest.approx(rewards[1], rel=1e-3)
        chart.locator(".plot").focus()
        for key, step in (("Home", 1), ("ArrowRight", 2), ("End", 4), ("ArrowLeft", 3)):
            tab.keyboard.press(key)
            assert when.inner_text() == f"step {step}"
            assert float(value.inner_text()) == pytest.approx(rewards[step], rel=1e-3)
        assert "step 3" in chart.locator(".spoken").inner_text()
        tab.keyboard.press("Enter")
        assert tab.inner_text("#step-name") == "step 3 of 4"
        before = chart.locator("path.line").get_attribute("d")
        tab.fill("#smooth", "0.8")
        assert chart.locator("path.line").get_attribute("d") != before == chart.locator("path.raw").get_attribute("d")


@pytest.mark.thorough
def test_theme_help_and_the_way_down(chromium, url):
    with opened(chromium, url) as tab:
        ground = "getComputedStyle(document.body).backgroundColor"
        light = tab.evaluate(ground)
        tab.click("#theme")
        dark = tab.evaluate(ground)
        assert dark != light and tab.get_attribute("#theme", "aria-pressed") == "true"
        tab.reload()
        assert tab.evaluate(ground) == dark
        tab.click("h1")
        tab.keyboard.press("d")
        assert tab.evaluate(ground) == light
        tab.keyboard.press("?")
        assert tab.is_visible("#help")
        tab.keyboard.press("ArrowLeft")
        assert tab.inner_text("#step-name") == "step 4 of 4"
        tab.click("#help .close")
        tab.click("#open-help")
        tab.keyboard.press("Escape")
        assert tab.is_hidden("#help")
        tab.click("[data-to=gallery]")
        expect(tab.locator("#step")).to_be_in_viewport()
        tab.click("[data-to=curves]")
        tab.keyboard.press("/")
        assert tab.evaluate("document.activeElement.id") == "q"


@pytest.mark.thorough
def test_more_rows_than_a_page_are_shown_on_demand(chromium, run, tmp_path):
    many = [one.model_copy(update={"index": i}) for i in range(10) for one in run.samples[4]]
    with opened(chromium, page_of(tmp_path, type(run)(run.folder, run.curves, {4: many}))) as tab:
        assert len(keys(tab)) == 24
        tab.click("#more")
        tab.click("#more")
        assert len(set(keys(tab))) == 60 and tab.is_hidden("#more")
