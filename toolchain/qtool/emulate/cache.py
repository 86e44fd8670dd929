"""Folders that take long to make, kept in the user's cache under a digest of everything that goes in.

A folder appears whole or not at all: it is made beside its place and renamed. Of several processes that want
the same one, one makes it and the others wait; what a killed process left is removed by the next.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qtool.errors import EmulationError

try:
    import fcntl
except ImportError:  # Windows, where nothing is emulated
    fcntl = None  # type: ignore[assignment]

Note = Callable[[str], None]
"""Told what is going on, in a line of text."""


def cache_root() -> Path:
    """Returns the folder of everything that is kept: `qtool/emulate` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "qtool" / "emulate"


def kept_folder(name: str, inputs: Sequence[str], make: Callable[[Path], None], note: Note) -> Path:
    """Returns a folder of the cache, and makes it first if it is not there.

    Args:
        name: what it is, for people.
        inputs: all that its content depends on.
        make: fills the empty folder that it is given.
        note: told when another process is at it.

    Raises:
        EmulationError: the cache cannot be written, or `make` failed.
    """
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    folder = cache_root() / f"{name}-{digest}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{folder.name}.lock"), note):
            if not folder.is_dir():  # another process may just have made it
                partial = folder.with_name(f"{folder.name}.partial")
                _make_whole(partial, make)
                partial.rename(folder)
    except OSError as error:
        raise EmulationError(
            f"cannot write the cache {folder}: {error.strerror or error}",
            hint="Free some space (it takes about 200 MB), or set XDG_CACHE_HOME to another folder.",
        ) from error
    return folder


def _make_whole(partial: Path, make: Callable[[Path], None]) -> None:
    """Fills a folder; removes it if that fails. Called with the lock, so what is there is a leftover."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        make(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _locked(path: Path, note: Note) -> Iterator[None]:
    """Holds a lock that ends with this process; waits for another process that has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note("another process sets it up; waiting")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
