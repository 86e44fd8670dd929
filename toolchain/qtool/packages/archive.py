"""An artifact as one zip archive for an app: for its assets, or to be downloaded when it is wanted.

Nothing is compressed, and the content of every file starts at a multiple of 16,384 bytes, the page size of
recent Android devices: what is in the archive can be mapped where it lies. The same artifact gives the same
bytes.

Padding is in the headers' extra fields, in the form that Android's tools write and keep (zipalign; header id
0xD935: the alignment in two bytes, then zeros).
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from qtool.artifact.folder import check_outside, writing
from qtool.errors import OutputError
from qtool.packages import checked, file_names
from qtool_runtime import manifest

PAGE = 16 * 1024
_ALIGNMENT_ID = 0xD935
_LOCAL_HEADER, _FIELD_HEADER, _ZIP64_FIELD = 30, 6, 20
"""Bytes: a file's header without its name, the least alignment field, the field with sizes of 64 bits."""
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The first date of the format: archives do not tell when they were written."""


@dataclass(frozen=True)
class StoreLimit:
    """What a store takes, in bytes. Published by the stores; looked up in November 2026."""

    store: str
    bytes: int


STORE_LIMITS = (
    # https://support.google.com/googleplay/android-developer/answer/9859372
    StoreLimit("Google Play, one asset or AI pack", 1_500_000_000),
    StoreLimit("Google Play, all packs of an app", 4_000_000_000),
    # https://developer.apple.com/help/app-store-connect/reference/on-demand-resources-size-limit
    StoreLimit("App Store, one on-demand resource before iOS 18", 512_000_000),
    StoreLimit("App Store, one on-demand resource from iOS 18 on", 8_000_000_000),
)


@dataclass(frozen=True)
class Archive:
    """An archive that was written."""

    path: Path
    files: int
    bytes: int

    def fits(self, limit: StoreLimit) -> bool:
        """Tells whether a store takes it, as it is."""
        return self.bytes <= limit.bytes


def write_archive(artifact: Path, destination: Path, *, force: bool = False) -> Archive:
    """Writes an artifact as an archive.

    Args:
        artifact: the artifact's folder.
        destination: the file to write; appears whole or not at all.
        force: replace an archive of an artifact that is there.

    Raises:
        ArtifactError: it is no artifact, or damaged.
        OutputError: the destination exists or cannot be written.
    """
    _check_destination(destination, force)
    names = file_names(checked(artifact))
    check_outside(destination, artifact)
    with writing(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".archive-", dir=destination.parent) as folder:
            partial = Path(folder) / destination.name
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
                for name in names:
                    _add(archive, artifact / name, name)
            size = partial.stat().st_size
            _check_destination(destination, force)
            partial.replace(destination)
    return Archive(destination, len(names), size)


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """Adds a file so that its content starts on a page."""
    entry = zipfile.ZipInfo(name, _EARLIEST)
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    entry.file_size = path.stat().st_size
    is_large = entry.file_size * 1.05 > zipfile.ZIP64_LIMIT  # as zipfile decides
    assert archive.fp is not None
    header = _LOCAL_HEADER + len(name.encode()) + (_ZIP64_FIELD if is_large else 0)
    padding = -(archive.fp.tell() + header + _FIELD_HEADER) % PAGE
    entry.extra = struct.pack("<HHH", _ALIGNMENT_ID, 2 + padding, PAGE) + bytes(padding)
    with path.open("rb") as source, archive.open(entry, "w", force_zip64=is_large) as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _check_destination(path: Path, force: bool) -> None:
    """Refuses a destination that must not be replaced."""
    if not os.path.lexists(path):
        return
    if not force:
        raise OutputError(f"the output {path} exists already", hint="Choose another file, or pass --force.")
    if path.is_symlink() or not path.is_file() or not _is_archive(path):
        raise OutputError(
            f"the output {path} is not an archive of an artifact, so --force does not replace it",
            hint="Choose another file, or remove it yourself.",
        )


def _is_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(manifest.FILE_NAME).file_size > manifest.MAXIMUM_BYTES:
                return False
            return "format_version" in json.loads(archive.read(manifest.FILE_NAME))
    except (OSError, zipfile.BadZipFile, LookupError, ValueError, TypeError, RecursionError):
        return False
