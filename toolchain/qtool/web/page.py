"""Writes the static folder: page, libraries, artifact. Any file server can serve it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from qtool.artifact.folder import check_destination, check_outside, new_folder
from qtool.web.libraries import find_libraries
from qtool_runtime import manifest
from qtool_runtime.errors import ArtifactError
from qtool_runtime.integrity import check_files
from qtool_runtime.manifest import Manifest

STATIC = Path(__file__).parent / "static"
MODEL = "model"
"""The artifact's folder within the page's."""
LIBRARIES = "lib"


@dataclass(frozen=True)
class WebPackage:
    """A folder that was written.

    Attributes:
        path: the folder.
        files: how many files it has.
        bytes: their sizes together.
    """

    path: Path
    files: int
    bytes: int


def package_web(
    artifact: Path,
    destination: Path,
    *,
    node_modules: Path | None = None,
    fetch: bool = False,
    force: bool = False,
) -> WebPackage:
    """Writes a page that runs an artifact in the browser.

    Args:
        artifact: an artifact for browsers.
        destination: the folder to write; appears whole or not at all.
        node_modules: where npm has installed the libraries; None for the user's cache.
        fetch: let npm download the libraries that the cache does not have.
        force: replace a page that is there.

    Raises:
        ArtifactError: the artifact is damaged, or was built for something else.
        MissingExtraError: a library is missing or altered.
        OutputError: the destination exists or cannot be written.
    """
    document = manifest.read(artifact)
    _check_use(document)
    check_files(artifact, document, hashes=True)
    check_destination(destination, force, _why_not_page)
    check_outside(destination, artifact)
    libraries = find_libraries(node_modules, fetch=fetch)
    with new_folder(destination, force=force, why_not_ours=_why_not_page) as folder:
        shutil.copytree(STATIC, folder, dirs_exist_ok=True)
        for target, source in libraries.items():
            _copy(source, folder / LIBRARIES / target)
        for path in (manifest.FILE_NAME, *(entry.path for entry in document.files)):
            _copy(artifact / path, folder / MODEL / path)
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return WebPackage(destination, len(sizes), sum(sizes))


def _check_use(document: Manifest) -> None:
    if document.graph.provider != "webgpu":
        raise ArtifactError(
            f"{document.name} was built for the target {document.target.get('name')!r}"
            f" (provider {document.graph.provider!r}); a browser needs the provider 'webgpu'",
            hint="Build it with --target web-int4.",
        )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _why_not_page(path: Path, names: set[str]) -> str | None:
    """Says why a folder is not a page, or holds more than that."""
    if not (path / MODEL / manifest.FILE_NAME).is_file():
        return "is not a page"
    foreign = sorted(names - {entry.name for entry in STATIC.iterdir()} - {MODEL, LIBRARIES})
    return f"holds {foreign[0]!r}, which is no file of the page" if foreign else None
