"""The playground in a browser, as `samr1 playground` serves it: the tiny policy and the small SAM."""

from __future__ import annotations

import subprocess
import sys
import time

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.report.browser import CONTRAST, PHONE, opened, wider_than_the_window
from tests.service.servers import ROOT, environment, free_port


@pytest.fixture(scope="module")
def playground(small_sam, drawn):
    """The server's process and URL. The samr1_tiny recipe names its files relative to the checkout."""
    port = free_port()
    command = [sys.executable, "-m", "samr1_verl.cli", "playground", "--port", str(port)]
    command += ["--examples", str(drawn / "test.parquet"), "--set", "samr1.segmenter.service.cache_dir=null"]
    process = subprocess.Popen(command, env=environment(), cwd=ROOT)
    url = f"http://127.0.0.1:{port}/"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, f"samr1 playground ended with {process.returncode}"
        try:
            httpx.get(url, timeout=5).raise_for_status()
            break
        except httpx.HTTPError:
            time.sleep(0.2)
    yield process, url
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def url(playground):
    return playground[1]


def answered(tab):
    expect(tab.locator("#result")).to_be_visible(timeout=60_000)
    return tab.locator("#answer")


def test_an_example_is_answered(chromium, url):
    with opened(chromium, url) as tab:
        assert tab.locator(".example").count() == 6
        tab.locator(".example").nth(1).click()
        answer = answered(tab)
        assert tab.inner_text("#asked") == tab.locator(".example").nth(1).inner_text() == tab.input_value("#sentence")
        assert tab.locator("#preview").is_visible() and tab.inner_text("#drop-text") == "example 2"
        assert answer.locator(".thought").inner_text().startswith("it is the")
        assert '"bbox"' in answer.locator(".answer").inner_text() and "box " in answer.locator(".figures").inner_text()
        for layer, mark in (("mask", "canvas.mask"), ("box", "rect.box"), ("points", ".point")):
            assert answer.locator(mark).count() > 0
            tab.uncheck(f"#layer-{layer}")
            assert answer.locator(mark).count() == 0
            tab.locator("h1").click()
            tab.keyboard.press(layer[0])
            assert answer.locator(mark).count() > 0


def test_an_own_image_is_chosen_or_dropped(chromium, url, drawn):
    file = sorted((drawn / "images").rglob("*.*"))[0]
    with opened(chromium, url) as tab:
        tab.set_input_files("#file", file)
        tab.locator("h1").click()
        tab.keyboard.press("/")
        tab.keyboard.type("the <b>square</b>")
        tab.keyboard.press("Enter")
        answered(tab)
        assert tab.inner_text("#asked") == "the <b>square</b>" and tab.inner_text("#drop-text") == file.name
        handle = tab.evaluate_handle(
            """async (bytes) => {
              const moved = new DataTransfer();
              moved.items.add(new File([new Uint8Array(bytes)], "dropped.png"));
              return moved;
            }""",
            list(file.read_bytes()),
        )
        tab.dispatch_event("#drop", "dragover", {"dataTransfer": handle})
        assert "over" in tab.get_attribute("#drop", "class")
        tab.dispatch_event("#drop", "drop", {"dataTransfer": handle})
        assert tab.inner_text("#drop-text") == "dropped.png" and "over" not in tab.get_attribute("#drop", "class")
        tab.click("#go")
        expect(tab.locator("#go")).to_have_text("Segment", timeout=60_000)
        assert tab.is_visible("#result")


def test_what_cannot_be_asked_is_said_in_the_page(chromium, url, drawn, tmp_path):
    text, bomb = tmp_path / "notes.png", tmp_path / "large.png"
    text.write_text("no image")
    Image.new("1", (8000, 7000)).save(bomb)
    problem = "#problem"
    with chromium.new_page() as tab:  # a refusal is an HTTP status, which the console notes
        tab.goto(url)
        tab.click("#go")
        assert "image" in tab.inner_text(problem)
        tab.set_input_files("#file", text)
        tab.click("#go")
        assert "segment" in tab.inner_text(problem)
        tab.fill("#sentence", "a thing")
        for file, words in ((text, "unreadable"), (bomb, "8000x7000 pixels")):
            tab.set_input_files("#file", file)
            tab.click("#go")
            expect(tab.locator(problem)).to_contain_text(words, timeout=30_000)
            assert tab.is_hidden("#result") and tab.inner_text("#go") == "Segment"
        large = tmp_path / "huge.png"
        large.write_bytes(b"\0" * 30_000_001)
        tab.set_input_files("#file", large)
        tab.click("#go")
        expect(tab.locator(problem)).to_contain_text("the limit is 30000000")
        tab.locator(".example").first.click()
        answered(tab)
        assert tab.is_hidden(problem)


def test_theme_help_width_and_contrast(chromium, url):
    for scheme in ("light", "dark"):
        with opened(chromium, url, PHONE, color_scheme=scheme) as tab:
            tab.locator(".example").first.click()
            answered(tab)
            assert wider_than_the_window(tab) <= 0
            contrast, text = tab.evaluate(CONTRAST)
            assert contrast >= 4.5, text
            pressed = tab.get_attribute("#theme", "aria-pressed")
            tab.click("#theme")
            assert tab.get_attribute("#theme", "aria-pressed") != pressed
            tab.click("#open-help")
            assert tab.is_visible("#help")
            tab.click("#help .close")
            tab.locator("h1").click()
            tab.keyboard.press("d")
            assert tab.get_attribute("#theme", "aria-pressed") == pressed


@pytest.mark.thorough
def test_a_server_that_has_gone_is_said_in_the_page(chromium, playground):
    """The last test of the module: it stops the server."""
    process, url = playground
    with chromium.new_page() as tab:
        tab.goto(url)
        process.terminate()
        assert process.wait(30) == 0 or process.returncode < 0
        tab.locator(".example").first.click()
        expect(tab.locator("#problem")).to_contain_text("Is samr1 playground still running?")
