"""A page in a real Chromium that is watched: what it logs, throws and asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}

# The least contrast of a text with what is behind it (WCAG 2), over all that can be seen.
CONTRAST = """() => {
  const rgba = (text) => {
    const n = text.match(/[\\d.]+/g).map(Number);
    return n.length < 4 ? [...n, 1] : n;
  };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3]));
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const own = rgba(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(element.parentElement));
  };
  const light = (c) => {
    const [r, g, b] = c.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let worst = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].map((node) => (node.nodeType === 3 ? node.data.trim() : "")).join("");
    if (!text || !element.checkVisibility() || element.matches("script, :disabled")) continue;
    const style = getComputedStyle(element), back = behind(element);
    const ink = over(rgba(element.namespaceURI.endsWith("svg") ? style.fill : style.color), back);
    const [one, other] = [light(ink), light(back)].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < worst[0]) worst = [contrast, text.slice(0, 60)];
  }
  return worst;
}"""
ALPHA = """(canvas) => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const opaque = Array.from(pixels.filter((_, i) => i % 4 === 3), (alpha) => (alpha ? 1 : 0));
  return [canvas.width, canvas.height, opaque.join("")];
}"""


class Watch:
    """What a tab did since it was opened."""

    def __init__(self, tab: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))


@contextmanager
def opened(chromium: Any, url: str, size: dict[str, int] = DESKTOP, **context: Any) -> Iterator[Any]:
    """A tab with the page; at the end, its console must be empty and no request must have left it.

    Requests for the URL's own place and for data in the page are none.
    """
    with chromium.new_context(viewport=size, **context) as one:
        tab = one.new_page()
        tab.set_default_timeout(20_000)
        watch = Watch(tab)
        tab.goto(url)
        yield tab
        origin = url.split("#")[0].rpartition("/")[0] if url.startswith("http") else url.split("#")[0]
        assert not watch.complaints
        assert [one for one in watch.requests if not one.startswith((origin, "data:", "blob:"))] == []


def wider_than_the_window(tab: Any) -> int:
    """By how many pixels a reader would have to scroll sideways."""
    return tab.evaluate("document.documentElement.scrollWidth - innerWidth")
