"""A picture of a report, as docs/report.md shows it: the summary, the first charts and the samples of one step.

samr1 report runs/samr1_tiny --compare runs/samr1_tiny_control
python benchmarks/screenshot.py runs/samr1_tiny/report.html docs/report.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import sync_playwright

from data.fetch_chromium import launch


def main(
    page: Annotated[Path, typer.Argument(help="a report", exists=True)],
    out: Annotated[Path, typer.Argument(help="the PNG file")],
    place: Annotated[str, typer.Option(help="view of the page, as its address has it after #")] = "",
    start: Annotated[str, typer.Option(help="CSS selector of the element at the top")] = "body",
    width: Annotated[int, typer.Option(help="pixels")] = 1280,
    height: Annotated[int, typer.Option(help="pixels")] = 900,
    dark: Annotated[bool, typer.Option("--dark", help="dark theme; default: light")] = False,
) -> None:
    """Open a report in Chromium and take a picture of its window."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        tab = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        tab.goto(f"{page.resolve().as_uri()}#{place}")
        tab.locator(start).first.evaluate("(element) => element.scrollIntoView()")
        tab.wait_for_timeout(300)  # images below the fold are decoded late
        tab.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    typer.run(main)
