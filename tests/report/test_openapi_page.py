"""The OpenAPI page of `samr1 serve` in a real Chromium: with a token set, and without a request to another host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.attack.raw_client import raw_server
from tests.report.browser import opened
from tests.service.servers import TOKEN

pytestmark = pytest.mark.slow


def test_the_page_opens_and_its_button_takes_the_token(chromium: Any, tmp_path: Path) -> None:
    with raw_server(tmp_path) as server, opened(chromium, f"http://127.0.0.1:{server.port}/docs") as tab:
        tab.get_by_text("/v1/segment").wait_for()
        tab.get_by_role("button", name="Authorize").first.click()
        tab.locator(".auth-container input").fill(TOKEN)
        tab.locator(".auth-btn-wrapper button", has_text="Authorize").click()
        tab.locator(".btn-done").click()
        tab.get_by_text("/metrics").first.click()
        tab.get_by_role("button", name="Try it out").click()
        tab.get_by_role("button", name="Execute").click()
        tab.locator(".live-responses-table .response-col_status", has_text="200").first.wait_for()
