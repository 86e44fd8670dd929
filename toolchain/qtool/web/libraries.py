"""The JavaScript libraries of a page: which files of which npm packages, and where these are here."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtool.errors import MissingExtraError
from qtool.web import npm
from qtool_runtime.integrity import sha256_of


@dataclass(frozen=True)
class LibraryFile:
    """One file of a package. `source` is its path there, `target` that within the page's folder `lib`."""

    source: str
    target: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Library:
    """One npm package, with the files of it that are needed."""

    name: str
    version: str
    license: str
    file: tuple[LibraryFile, ...]

    @property
    def specification(self) -> str:
        """What npm calls this version, such as "onnxruntime-web@1.30.0"."""
        return f"{self.name}@{self.version}"


def pinned_libraries() -> tuple[Library, ...]:
    """Returns the libraries that `libraries.toml` names."""
    document = tomllib.loads((Path(__file__).parent / "libraries.toml").read_text("utf-8"))
    return tuple(_library(entry) for entry in document["library"])


def _library(entry: dict[str, Any]) -> Library:
    return Library(**entry | {"file": tuple(LibraryFile(**file) for file in entry["file"])})


def find_libraries(node_modules: Path | None = None, *, fetch: bool = False) -> dict[str, Path]:
    """Finds every file that a page needs, and checks its SHA-256.

    Args:
        node_modules: where npm has installed the packages; None for the user's cache.
        fetch: let npm download what the cache does not have.

    Returns:
        For each file's place within `lib`, where it is now.

    Raises:
        MissingExtraError: a package is missing, of another version or altered, or cannot be fetched.
    """
    found: dict[str, Path] = {}
    for library in pinned_libraries():
        folder = _installed(library, node_modules) if node_modules else _cached(library, fetch)
        found |= {file.target: folder / file.source for file in library.file}
    return found


def cache_folder() -> Path:
    """Returns the user's folder for files that can be fetched again."""
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(named) if named else Path.home() / ".cache") / "qtool" / "web"


def _installed(library: Library, node_modules: Path) -> Path:
    """Returns a package's folder in `node_modules`, checked."""
    folder = node_modules / library.name
    hint = f"Run: npm install --ignore-scripts {' '.join(each.specification for each in pinned_libraries())}"
    try:
        version = json.loads((folder / "package.json").read_bytes())["version"]
    except (OSError, ValueError, LookupError, TypeError):
        raise MissingExtraError(f"{node_modules} has no package {library.name}", hint=hint) from None
    if version != library.version:
        raise MissingExtraError(
            f"{node_modules} has {library.name} {version}; a page needs {library.version}", hint=hint
        )
    if bad := _first_bad(library, folder):
        raise MissingExtraError(
            f"{folder / bad.source} is not that of {library.specification}: its SHA-256 differs",
            hint=hint,
        )
    return folder


def _cached(library: Library, fetch: bool) -> Path:
    """Returns a package's folder in the cache, checked; fetches it first if that is asked for."""
    folder = cache_folder() / library.specification.replace("/", "-")
    if _first_bad(library, folder) is None:
        return folder
    if not fetch:
        raise MissingExtraError(
            f"a page needs the npm package {library.specification}, which is not in the cache",
            hint="Pass --fetch to download it with npm, or --node-modules FOLDER where npm has installed it.",
        )
    npm.fetch(library.specification, {file.source: file.size for file in library.file}, folder)
    if bad := _first_bad(library, folder):
        raise MissingExtraError(
            f"npm gave another {bad.source} of {library.specification} than is known: its SHA-256 differs",
            hint="Check which registry npm uses: npm config get registry",
        )
    return folder


def _first_bad(library: Library, folder: Path) -> LibraryFile | None:
    """Returns the first file that is missing or altered."""
    for file in library.file:
        path = folder / file.source
        if not path.is_file() or path.stat().st_size != file.size or sha256_of(path) != file.sha256:
            return file
    return None
