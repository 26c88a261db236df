"""Fetch a headless Chromium for the tests of the pages: 220 MB, needs no root and no package of the system.

    python data/fetch_chromium.py

The npm package @sparticuz/chromium holds it with its libraries and fonts, for Linux on x86-64. It is installed in
~/.cache/samr1_verl (or below $XDG_CACHE_HOME); a second run changes nothing. Where $CHROMIUM names a browser, or where
PATH has a Chromium or Chrome, the tests use that and nothing is fetched.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from data.npm_packages import FetchError, Package

PACKAGE = Package("@sparticuz/chromium", "153.0.0", "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0")
ON_PATH = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARCHIVES = ("al2023", "swiftshader", "fonts")
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>/usr/share/fonts</dir>
  <dir>{folder}/fonts</dir>
  <cachedir>{folder}/fonts-cache</cachedir>
</fontconfig>
"""


@dataclass(frozen=True)
class Browser:
    """A Chromium, and the environment variables that it needs beside ours."""

    executable: Path
    environment: dict[str, str] = field(default_factory=dict)


def browser() -> Browser:
    """The Chromium that $CHROMIUM names, else the one on PATH, else the fetched one.

    Raises:
        FetchError: $CHROMIUM names no file, or the package cannot be fetched.
    """
    if named := os.environ.get("CHROMIUM"):
        if not Path(named).is_file():
            raise FetchError(
                "no_such_browser", "CHROMIUM", f"found {named}, which is no file. Correct it, or unset it to fetch one"
            )
        return Browser(Path(named))
    if installed := next(filter(None, map(shutil.which, ON_PATH)), None):
        return Browser(Path(installed))
    folder = fetch()
    return Browser(
        folder / "chromium", {"LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_FILE": str(folder / "fonts.conf")}
    )


def launch(playwright: Any) -> Any:
    """A headless Chromium under Playwright's synchronous API. Raises FetchError."""
    chromium = browser()
    return playwright.chromium.launch(
        executable_path=str(chromium.executable),
        args=["--no-sandbox", "--disable-gpu"],  # root, as in a container, has no sandbox
        env={**os.environ, **chromium.environment},
    )


def fetch(cache: Path | None = None) -> Path:
    """The folder with `chromium`, its libraries and fonts, below `cache`. It appears when it is complete.

    Raises:
        FetchError: as `Package.download`.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samr1_verl"
    folder = cache / f"chromium-{PACKAGE.version}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch_", dir=cache) as scratch:
        whole = Path(scratch, "whole")
        _extract(PACKAGE.download(Path(scratch), rejected=cache), whole)
        (whole / "fonts.conf").write_text(FONTS.format(folder=folder))
        try:
            whole.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder


def _extract(tarball: Path, folder: Path) -> None:
    import brotli

    folder.mkdir()
    with tarfile.open(tarball) as package:

        def part(name: str) -> bytes:
            member = package.extractfile(f"package/bin/{name}.br")
            if member is None:
                raise FetchError("no_such_member", f"{tarball}: package/bin/{name}.br", "it is no file")
            return brotli.decompress(member.read())

        (folder / "chromium").write_bytes(part("chromium"))
        (folder / "chromium").chmod(0o755)
        for name in ARCHIVES:
            with tarfile.open(fileobj=io.BytesIO(part(f"{name}.tar"))) as archive:
                archive.extractall(folder, filter="data")


def main() -> None:
    """Print the path of the Chromium that the tests use, and fetch it where there is none."""
    try:
        typer.echo(browser().executable)
    except FetchError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
