"""An output folder that appears whole or not at all.

Files are written to a hidden folder beside the destination, which is renamed when everything is there. A
build that is killed leaves only that hidden folder: it has no manifest until the end, so nothing takes it for
an artifact, and the next build to the same place removes it. A process holds a lock on each hidden folder of
its own, so that two builds to one place do not remove each other's.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qtool.errors import OutputError
from qtool_runtime import manifest

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed builds stay until the user removes them
    fcntl = None  # type: ignore[assignment]

WhyNotOurs = Callable[[Path, set[str]], str | None]
"""Says why a folder that holds these names is not something that qtool wrote; None if it is."""

_REPLACED = "replaced"
"""The artifact that --force replaces, on its way out: in a hidden folder too."""


def check_destination(path: Path, force: bool, why_not_ours: WhyNotOurs | None = None) -> None:
    """Refuses a destination that must not be replaced.

    Args:
        path: the destination.
        force: replace what is there, if it is ours.
        why_not_ours: says why a path cannot be thrown away; None for what is not an artifact.

    Raises:
        OutputError: something is there and `force` is False, or it is not ours.
    """
    if not os.path.lexists(path):
        return
    if not force:
        raise OutputError(f"the output {path} exists already", hint="Choose another folder, or pass --force.")
    with writing(path):
        reason = _why_not_replaced(path, why_not_ours or _why_not_artifact)
    if reason:
        raise OutputError(
            f"the output {path} {reason}, so --force does not replace it",
            hint="Choose another folder, or remove it yourself.",
        )


def check_outside(path: Path, artifact: Path) -> None:
    """Refuses a destination within the artifact that goes into it: the artifact would not be whole any more.

    Raises:
        OutputError: it lies there.
    """
    with writing(path):
        inside = path.resolve().is_relative_to(artifact.resolve())
    if inside:
        raise OutputError(
            f"the output {path} lies within the artifact {artifact}", hint="Choose another place."
        )


def _why_not_replaced(path: Path, why_not_ours: WhyNotOurs) -> str | None:
    """Says why what is at a path cannot be thrown away; None if it is ours, or an empty folder."""
    if path.is_symlink():
        return "is a symbolic link"
    if not path.is_dir():
        return "is not a folder"
    names = {entry.name for entry in path.iterdir()}
    return why_not_ours(path, names) if names else None


def _why_not_artifact(path: Path, names: set[str]) -> str | None:
    """Says why a folder is not an artifact, or holds more than that."""
    # A damaged or outdated artifact is one all the same; a folder with some other manifest.json is not.
    try:
        document = json.loads((path / manifest.FILE_NAME).read_bytes())
        listed = {Path(entry["path"]).parts[0] for entry in document["files"]}
        known = "format_version" in document
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        known = False
    if not known:
        return "is not an artifact"
    foreign = sorted(names - listed - {manifest.FILE_NAME})
    return f"holds {foreign[0]!r}, which is no file of the artifact" if foreign else None


@contextmanager
def new_folder(destination: Path, *, force: bool, why_not_ours: WhyNotOurs | None = None) -> Iterator[Path]:
    """Gives a temporary folder that becomes `destination` when the block ends without an error.

    Args:
        destination: the folder to write.
        force: replace what is there, if it is ours.
        why_not_ours: see `check_destination`.

    Raises:
        OutputError: the destination exists (see `check_destination`) or cannot be written.
    """
    destination = Path(os.path.abspath(destination))  # noqa: PTH100  (resolve() would follow a symbolic link)
    made: list[Path] = []
    try:
        with writing(destination):
            _make_parents(destination.parent, made)
            _remove_leftovers(destination)
            check_destination(destination, force, why_not_ours)
            with _hidden_folder(destination) as partial:
                yield partial
                check_destination(destination, force, why_not_ours)
                _put_in_place(partial, destination, force)
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turns the operating system's errors into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {destination}: {error.strerror or error}",
            hint="Free some space or choose another folder; nothing was left behind.",
        ) from error


def _make_parents(folder: Path, made: list[Path]) -> None:
    """Makes a folder and those above it, and notes which were new, the innermost first."""
    made += [parent for parent in (folder, *folder.parents) if not os.path.lexists(parent)]
    folder.mkdir(parents=True, exist_ok=True)


def _prefix(destination: Path) -> str:
    return f".{destination.name}.partial-"


@contextmanager
def _hidden_folder(destination: Path) -> Iterator[Path]:
    """Makes a hidden folder beside the destination, locked; removes it at the end if it is still there."""
    lock = None
    try:
        while True:
            folder = destination.parent / f"{_prefix(destination)}{secrets.token_hex(4)}"
            folder.mkdir()
            lock = _lock(folder, wait=True)
            if folder.is_dir():  # else another build took it for a leftover before it was locked
                break
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def _put_in_place(partial: Path, destination: Path, force: bool) -> None:
    """Renames the finished folder; an artifact that was there is removed only after that."""
    if not (force and destination.is_dir()):
        partial.rename(destination)  # fails where another build was quicker
        return
    with _hidden_folder(destination) as old:
        destination.rename(old / _REPLACED)
        try:
            partial.rename(destination)
        except BaseException:
            (old / _REPLACED).rename(destination)
            raise


def _lock(folder: Path, *, wait: bool) -> int | None:
    """Locks a folder for as long as this process lives or the descriptor is open.

    Returns None where another process has it, or where the file system cannot lock folders.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers(destination: Path) -> None:
    """Removes what killed builds left: hidden folders whose lock nobody holds.

    One that was killed between the two renames of a replacement left the old artifact there: it comes back.
    """
    pattern = re.compile(re.escape(_prefix(destination)) + "[0-9a-f]{8}")
    for entry in list(os.scandir(destination.parent)):
        if not pattern.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
            continue
        folder = Path(entry.path)
        lock = _lock(folder, wait=False)
        if lock is None:
            continue
        if (folder / _REPLACED).is_dir() and not os.path.lexists(destination):
            (folder / _REPLACED).rename(destination)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
