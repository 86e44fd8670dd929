"""Fetches packages with npm, which knows the user's registry and proxy. Nothing of a package is executed."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qtool.errors import MissingExtraError

TIMEOUT = 600
"""Seconds for one package; the largest has 33 MB."""


def fetch(specification: str, sizes: Mapping[str, int], folder: Path) -> None:
    """Downloads a package and puts some of its files into a folder.

    Args:
        specification: the package and its version, such as "onnxruntime-web@1.30.0".
        sizes: paths within the package, and their sizes in bytes: nothing larger is read.
        folder: where to put them.

    Raises:
        MissingExtraError: npm is missing or fails, or the package lacks a file.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise MissingExtraError(
            f"npm, which fetches {specification}, is not installed",
            hint="Install Node.js, or pass --node-modules with a folder that was made on another machine.",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as temporary:
        archive = _pack(npm, specification, Path(temporary))
        files = Path(temporary) / "files"
        _extract(archive, specification, sizes, files)
        shutil.rmtree(folder, ignore_errors=True)
        files.rename(folder)


def _pack(npm: str, specification: str, folder: Path) -> Path:
    """Returns the archive of a package, downloaded into a folder."""
    command = [npm, "pack", specification, "--ignore-scripts", "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise MissingExtraError(f"npm did not fetch {specification} within {TIMEOUT} s") from None
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[0] if lines else f"exit code {done.returncode}"
        raise MissingExtraError(
            f"npm cannot fetch {specification}: {reason}", hint=f"Try it yourself: npm pack {specification}"
        )
    return archives[0]


def _extract(archive: Path, specification: str, sizes: Mapping[str, int], folder: Path) -> None:
    """Writes the wanted files of a package's archive into a folder; no other member is touched."""
    try:
        with tarfile.open(archive, "r:gz") as package:
            for source, size in sizes.items():
                stream = package.extractfile(f"package/{source}")
                content = stream.read(size + 1) if stream else b""
                path = folder / source
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    except (KeyError, tarfile.TarError, EOFError, OSError) as error:
        raise MissingExtraError(f"the archive of {specification} cannot be read: {error}") from error
