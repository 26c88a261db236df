"""The report in a browser: its figures, its controls, what it does with hostile text, and every width."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from samr1_verl.geometry.masks import decode_rle
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
        assert card.locator(".viewer").count() == 2 and card.locator("p.quiet").count() == 1


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
        assert "no logged curves" in tab.inner_text("#curves") and tab.locator(".card").count() == 6


def test_an_image_that_is_gone_is_named(chromium, run, tmp_path):
    moved = {step: [one.model_copy(update={"image": "/gone/away.png"}) for one in v] for step, v in run.samples.items()}
    with opened(chromium, page_of(tmp_path, type(run)(run.folder, run.curves, moved))) as tab:
        assert "/gone/away.png" in tab.locator(".card .missing").first.inner_text()
        assert tab.locator(".card canvas.mask").count() == 6
