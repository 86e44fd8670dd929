"""Artifacts that were built before: a folder of the user's, by the digest of what each was made from.

An entry is an artifact, whole, called after its key. It appears by a rename, so that builds at the same time
neither see half of one nor disturb each other, and its files are compared with their SHA-256 whenever it is
used: one that was damaged is dropped, and the artifact built again. When the entries together become larger
than the cache may be, those go that have not been used for longest.

Weights are not copied but linked, where the file system can: an entry takes no space as long as an artifact
made from it is there.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qtool.artifact.folder import new_folder
from qtool.artifact.layout import DATA_FILE
from qtool.errors import ArtifactError, OptionError, OutputError
from qtool_runtime import manifest
from qtool_runtime.integrity import check_files
from qtool_runtime.manifest import Manifest

DEFAULT_BYTES = 20_000_000_000
_KEY = re.compile(r"[0-9a-f]{64}")
_GONE = re.compile(r"\.[0-9a-f]{64}\.gone-[0-9]+")
"""On its way out; it stays where a process was killed while it removed it."""


@dataclass(frozen=True)
class Entry:
    """An artifact in the cache."""

    path: Path
    bytes: int
    last_used: float
    """Seconds since the epoch."""


class BuildCache:
    """A folder of artifacts.

    Args:
        folder: where it is; made when something is kept.
        most_bytes: how large all entries together may be.
        say: told where an entry is of no use, and why.
    """

    def __init__(
        self, folder: Path, most_bytes: int = DEFAULT_BYTES, say: Callable[[str], None] | None = None
    ) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._say = say or (lambda message: None)

    def fetch(self, key: str, folder: Path) -> Manifest | None:
        """Puts an artifact into an empty folder, and returns its manifest; None where there is none.

        The manifest itself is not put there: it is the last file of a build.

        Raises:
            OSError: the folder cannot be written.
        """
        entry = self.folder / key
        if not entry.is_dir():
            return None
        try:
            document = manifest.read(entry)
            for file in document.files:
                _place(entry / file.path, folder / file.path)
            check_files(folder, document, hashes=True)
        except (ArtifactError, FileNotFoundError) as error:
            for path in folder.iterdir():
                path.unlink() if path.is_file() else shutil.rmtree(path)
            if entry.is_dir():  # else it made room for another in the meantime
                self._say(f"an artifact in the cache is damaged, and built again: {error}")
                _remove(entry)
            return None
        with suppress(OSError):
            os.utime(entry)
        return document

    def store(self, key: str, folder: Path) -> None:
        """Keeps a copy of a finished artifact, and drops what has to make room for it.

        A cache that cannot be written does not fail a build.
        """
        entry = self.folder / key
        size = _bytes(folder)
        if size > self.most_bytes or entry.exists():
            return
        try:
            with new_folder(entry, force=False) as partial:
                for path in folder.rglob("*"):
                    if path.is_file():
                        _place(path, partial / path.relative_to(folder))
        except OutputError as error:
            if not entry.exists():  # else another build was quicker
                self._say(f"the artifact is not kept in the cache: {error}")
            return
        self._make_room(entry)

    def entries(self) -> list[Entry]:
        """Returns what is there, the last used first.

        Raises:
            OutputError: the folder cannot be read.
        """
        try:
            items = list(os.scandir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OutputError(
                f"the cache {self.folder} cannot be read: {error.strerror}",
                hint="QTOOL_CACHE_DIR names its folder.",
            ) from error
        found = []
        for item in items:
            if _KEY.fullmatch(item.name):
                with suppress(FileNotFoundError):  # it makes room for another right now
                    path = Path(item.path)
                    found.append(Entry(path, _bytes(path), item.stat().st_mtime))
        return sorted(found, key=lambda entry: (-entry.last_used, entry.path))

    def clear(self) -> int:
        """Drops every entry, and returns how many bytes they had."""
        entries = self.entries()
        for entry in entries:
            _remove(entry.path)
        with suppress(OSError):
            for path in self.folder.iterdir():
                if _GONE.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
        return sum(entry.bytes for entry in entries)

    def _make_room(self, newest: Path) -> None:
        """Drops what has not been used for longest, but not what came last."""
        entries = self.entries()
        size = sum(entry.bytes for entry in entries)
        for entry in reversed(entries):
            if size <= self.most_bytes:
                return
            if entry.path != newest:
                _remove(entry.path)
                size -= entry.bytes


def default_cache(say: Callable[[str], None] | None = None) -> BuildCache:
    """Returns the user's cache.

    QTOOL_CACHE_DIR names its folder, by default one within the user's folder for caches; QTOOL_CACHE_BYTES
    bounds it.

    Args:
        say: told where an entry is of no use, and why.

    Raises:
        OptionError: QTOOL_CACHE_BYTES is no number.
    """
    named = os.environ.get("QTOOL_CACHE_DIR")
    common = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    folder = Path(named) if named else Path(common) / "qtool" / "artifacts"
    text = os.environ.get("QTOOL_CACHE_BYTES") or str(DEFAULT_BYTES)
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise OptionError(
            f"QTOOL_CACHE_BYTES is {text!r}; valid is a whole number of bytes",
            hint=f"Unset it for the default of {DEFAULT_BYTES}.",
        )
    return BuildCache(folder, int(text), say)


def _place(source: Path, target: Path) -> None:
    """Puts a file into place: weights as a link, other files, which someone may edit, as a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name == DATA_FILE:
        with suppress(OSError):  # another file system, or one without links
            target.hardlink_to(source)
            return
    shutil.copyfile(source, target)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(entry: Path) -> None:
    """Removes an entry; by its name it is gone at once."""
    away = entry.with_name(f".{entry.name}.gone-{os.getpid()}")
    with suppress(OSError):
        entry.rename(away)
        shutil.rmtree(away, ignore_errors=True)
