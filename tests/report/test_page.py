"""The report in a browser: its figures, its controls, what it does with hostile text, and every width."""

from __future__ import annotations

import json
import re
import socket

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from samr1_verl.masks import decode_rle
from tests.report.browser import ALPHA, CONTRAST, PHONE, opened, wider_than_the_window
from tests.report.conftest import NASTY, logged, page_of

BREAK_IN = """async (elsewhere) => {
  const script = document.createElement("script");
  script.textContent = "window.ran = 1";
  document.body.append(script);
  const inside = document.createElement("div");
  inside.innerHTML = `<img src="${elsewhere}" onerror="window.ran = 2"><iframe src="${elsewhere}"></iframe>`;
  document.body.append(inside);
  return fetch(elsewhere).then(() => "sent", () => "stopped");
}"""


@pytest.fixture(scope="module")
def url(run, tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("one"), run)


@pytest.fixture(scope="module")
def compared(run, other, tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("two"), run, other)


def keys(tab):
    return [card.get_attribute("data-row") for card in tab.query_selector_all(".card")]


def test_every_figure_of_the_charts_is_that_of_the_event_files(chromium, run, url):
    with opened(chromium, url) as tab:
        tags = [series["tag"] for panel in json.loads(tab.inner_text("#data"))["panels"] for series in panel["series"]]
        for values in tab.locator(".chart .values > summary").all():
            values.click()
        expect(tab.locator(".chart .values table")).to_have_count(tab.locator(".chart").count())
        shown = []
        for table in tab.locator(".chart .values table").all():
            rows = [row.locator("th, td").all_inner_texts() for row in table.locator("tbody tr").all()]
            steps = [int(row[0]) for row in rows]
            shown += [dict(zip(steps, map(float, column), strict=True)) for column in list(zip(*rows, strict=True))[1:]]
        figures = logged(run.folder)
        assert shown == [figures[tag] for tag in tags] and len(tags) > 25
        last = tab.locator("#summary .figure b").first.inner_text()
        assert float(last) == pytest.approx(run.curves["val-core/noise_0/giou/lisa"][4], rel=1e-3)


def test_every_score_of_a_sample_is_the_logged_one(chromium, run, url):
    with opened(chromium, url) as tab:
        for step, samples in run.samples.items():
            for one in samples:
                tab.goto(f"{url}#step={step}&row={one.data_source}:{one.index}")
                rows = tab.locator("#sample table.scores tbody tr").all()
                shown = {row.get_attribute("data-score"): float(row.locator("td").inner_text()) for row in rows}
                wanted = {k: v for k, v in one.scores.items() if v or not k.startswith("answer/")}
                assert shown == wanted
                assert tab.inner_text("#sample-title") == one.sentence
                assert one.response.split("</think>")[0].removeprefix("<think>") in tab.inner_text("#sample .thought")


def test_masks_are_decoded_as_pycocotools_does(chromium, run, url):
    size = (300, 400)
    with opened(chromium, f"{url}#step=2") as tab:
        for one in run.samples[2]:
            card = tab.locator(f".card[data-row='{one.data_source}:{one.index}']")
            for layer, counts in (("mask", one.mask), ("truth", one.truth)):
                width, height, bits = card.locator(f"canvas.{layer}").evaluate(ALPHA)
                assert (width, height) == (384, 288)
                drawn = np.array(list(bits), dtype=int).reshape(height, width).astype(bool)
                whole = Image.fromarray(decode_rle(counts, size).astype(np.uint8) * 255)
                small = np.asarray(whole.resize((width, height), Image.Resampling.BOX)) >= 128
                if layer == "truth":  # a line only: inside the mask, and along it
                    assert not (drawn & ~small).any() and drawn.any()
                else:
                    assert (drawn == small).all()


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


def test_two_runs_share_charts_and_stand_side_by_side(chromium, run, other, compared):
    with opened(chromium, f"{compared}#step=3") as tab:
        chart = tab.locator(".chart").first
        assert chart.locator("path.line").count() == 2 and chart.locator("path.line.dashed").count() == 1
        assert chart.locator(".legend .name").all_inner_texts() == ["first", "second"]
        shown = [float(text) for text in chart.locator("output").all_inner_texts()]
        assert shown == pytest.approx([one.curves["reward/score"][4] for one in (run, other)], rel=1e-3)
        card = tab.locator(".card").first
        assert card.locator(".run-name").all_inner_texts() == ["first", "second"]
        scores = [float(text) for text in card.locator("[data-score=acc] b").all_inner_texts()]
        assert scores == [round(one.samples[3][0].scores["acc"], 2) for one in (run, other)]
        card.click()
        assert tab.locator("#sample .viewer").count() == 2
        assert tab.locator("#sample .plot path.line").count() == 2
        tab.keyboard.press("Escape")
        tab.fill("#step", "0")
        assert card.locator(".viewer").count() == 2 and "No sample of this step" in card.inner_text()


def test_markup_in_a_response_is_text(chromium, nasty, tmp_path):
    with opened(chromium, page_of(tmp_path, nasty)) as tab:
        assert NASTY in tab.locator(".card .open").first.inner_text()
        assert NASTY in tab.locator(".card .thought").first.inner_text()
        assert tab.inner_text("h1") == "<b>third" and NASTY.replace("/", "") in tab.inner_text("#charts")
        tab.locator(".card").first.click()
        assert NASTY in tab.inner_text("#sample .thought") and f"<answer>{NASTY}" in tab.inner_text("#sample .answer")
        assert NASTY in tab.inner_text("#sample-body > p.quiet")
        assert tab.evaluate("window.ran") is None
        assert tab.locator("script").count() == 2 and tab.locator("img[src=x]").count() == 0


def test_the_policy_of_the_page_stops_scripts_and_requests(chromium, url):
    """What would happen if markup got in after all."""
    with socket.create_server(("127.0.0.1", 0)) as listener, chromium.new_page() as tab:
        elsewhere = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        tab.goto(url)
        assert tab.evaluate(BREAK_IN, elsewhere) == "stopped"
        assert tab.evaluate("window.ran") is None
        listener.settimeout(0.5)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize("place", ["", "#step=2&row=noise_1:1", "#q=zzz"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_needs_no_sideways_scroll_and_text_has_contrast(chromium, url, compared, place, scheme):
    for page in (url, compared):
        with opened(chromium, page + place, PHONE, color_scheme=scheme, has_touch=True) as tab:
            tab.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
            assert wider_than_the_window(tab) <= 0
            contrast, text = tab.evaluate(CONTRAST)
            assert contrast >= 4.5, text


def test_a_long_word_does_not_widen_a_phone(chromium, run, tmp_path):
    long = {
        s: [o.model_copy(update={"response": "x" * 3000, "sentence": "y" * 300}) for o in v]
        for s, v in run.samples.items()
    }
    page = page_of(tmp_path, type(run)(run.folder.with_name("z" * 90), run.curves, long))
    for place in ("", "#row=noise_0:0"):
        with opened(chromium, page + place, PHONE) as tab:
            assert wider_than_the_window(tab) <= 0
            assert tab.evaluate("(d => d.scrollWidth - d.clientWidth)(document.querySelector('#sample'))") <= 0


def test_half_a_run_says_what_is_missing(chromium, run, tmp_path):
    with opened(chromium, page_of(tmp_path, type(run)(run.folder, run.curves, {}))) as tab:
        assert "kept no samples" in tab.inner_text("#gallery") and tab.is_hidden("#samples")
        assert tab.locator(".chart path.line").count() > 25
        for key in ("ArrowLeft", "j", "m", "/", " "):
            tab.keyboard.press(key)
    with opened(chromium, page_of(tmp_path, type(run)(run.folder, {}, run.samples))) as tab:
        assert "no logged curves" in tab.inner_text("#curves") and len(keys(tab)) == 6


def test_an_image_that_is_gone_is_named(chromium, run, tmp_path):
    moved = {step: [one.model_copy(update={"image": "/gone/away.png"}) for one in v] for step, v in run.samples.items()}
    with opened(chromium, page_of(tmp_path, type(run)(run.folder, run.curves, moved))) as tab:
        assert "/gone/away.png" in tab.locator(".card .missing").first.inner_text()
        assert tab.locator(".card canvas.mask").count() == 6


def test_more_rows_than_a_page_are_shown_on_demand(chromium, run, tmp_path):
    many = [one.model_copy(update={"index": i}) for i in range(10) for one in run.samples[4]]
    with opened(chromium, page_of(tmp_path, type(run)(run.folder, run.curves, {4: many}))) as tab:
        assert len(keys(tab)) == 24
        tab.click("#more")
        tab.click("#more")
        assert len(set(keys(tab))) == 60 and tab.is_hidden("#more")
