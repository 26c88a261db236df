"""The report of dialogues in a browser: the viewer steps through the masks of a sample's turns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from samr1_verl.geometry.masks import encode_rle
from samr1_verl.report.gallery import Gallery
from samr1_verl.report.panels import panels_of
from samr1_verl.scoring.sample import Turn
from tests.report.browser import CONTRAST, PHONE, opened, wider_than_the_window
from tests.report.conftest import NASTY, page_of

DONE = "<think>it fits</think><answer>done</answer>"


def talked(sample):
    """The sample with a first answer without a box, whose mask is the left half, its own answer, and `done`."""
    left = np.zeros(sample.size, dtype=bool)
    left[:, : sample.size[1] // 2] = True
    first = Turn(text=f"<think>{NASTY}</think><answer>[]</answer>", reason=None, shapes=(), mask=encode_rle(left))
    own = Turn(text=sample.response, reason=sample.reason, shapes=sample.shapes, mask=sample.mask)
    done = Turn(text=DONE, reason=None, shapes=(), mask=None)
    return sample.model_copy(update={"turns": (first, own, done)})


@pytest.fixture(scope="module")
def dialogues(run):
    """The run whose first row of every step is a dialogue."""
    samples = {step: [talked(rows[0]), *rows[1:]] for step, rows in run.samples.items()}
    return dataclasses.replace(run, samples=samples)


@pytest.fixture(scope="module")
def url(dialogues, tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("turns"), dialogues)


def place(sample):
    return f"#row={sample.data_source}:{sample.index}"


@pytest.mark.thorough
def test_the_buttons_step_through_the_masks(chromium, dialogues, url):
    last = dialogues.samples[4][0]
    with opened(chromium, url + place(last)) as tab:
        side = tab.locator("#sample .side")

        def shown():
            mask = side.locator("canvas.mask").get_attribute("data-mask")
            return side.locator(".turns [aria-pressed=true]").inner_text(), mask, side.locator("rect.box").count()

        assert side.locator("[data-turn]").all_inner_texts() == ["1", "2", "3: done"]
        done = shown()
        assert done == ("3: done", done[1], len(last.shapes)), "the mask stays"
        assert side.locator(".thought").inner_text() == "it fits"
        assert side.get_by_label("Next turn").is_disabled()
        side.get_by_label("Turn before").click()
        assert shown() == ("2", *done[1:])
        side.locator("[data-turn='1']").click()
        first = shown()
        assert first[0] == "1" and first[1] != done[1] and first[2] == 0
        assert side.locator(".thought").inner_text() == NASTY and tab.evaluate("window.ran") is None
        assert side.get_by_label("Turn before").is_disabled()
        side.get_by_label("Next turn").click()
        assert shown() == ("2", *done[1:])


@pytest.mark.thorough
def test_cards_show_the_last_mask_and_say_how_many_turns(chromium, dialogues, run, url):
    with opened(chromium, url) as tab:
        first, second = tab.locator(".card").first, tab.locator(".card").nth(1)
        assert first.locator("[data-score=turns]").inner_text() == "3 turns"
        assert second.locator("[data-score=turns]").count() == 0
        tab.goto(url + place(dialogues.samples[4][1]))
        assert tab.locator("#sample .viewer").count() == 1 and tab.locator("#sample .turns").count() == 0
    gallery = Gallery(1)
    with_turns, without = (gallery.sample(one) for one in (dialogues.samples[4][0], run.samples[4][0]))
    assert with_turns.pop("turns")[1]["mask"] == without["mask"] and with_turns == without


@pytest.mark.thorough
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_buttons_fit_a_phone_and_can_be_read(chromium, dialogues, url, scheme):
    with opened(chromium, url + place(dialogues.samples[4][0]), PHONE, color_scheme=scheme) as tab:
        assert wider_than_the_window(tab) <= 0
        contrast, text = tab.evaluate(CONTRAST)
        assert contrast >= 4.5, text


def test_curves_by_turn_have_charts():
    tags = ["reward/acc/turn_1", "reward/acc/turn_2", "reward/turns", "reward/done", "reward/gain"]
    tags += [f"val-aux/a/b/acc/turn_{turn}/mean@1" for turn in (1, 2)]
    panels = panels_of([{tag: {1: 0.5} for tag in tags}])
    assert {panel.title: [series.label for series in panel.series] for panel in panels} == {
        "Terms of the reward": ["gain"],
        "Mask IoU by turn": ["1", "2"],
        "Turns": ["turns"],
        "Dialogues that end with done": ["share"],
        "Mask IoU by turn, a/b": ["1", "2"],
    }
