"""An output folder that appears whole or not at all.

Files are written to a hidden folder beside the destination, which is renamed when everything is there. A build
that is killed leaves only that hidden folder: it has no manifest until the end, so nothing takes it for an
artifact, and the next build to the same place removes it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qtool.errors import OutputError
from qtool_runtime import manifest

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed builds stay until the user removes them
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"


def check_destination(path: Path, force: bool) -> None:
    """Refuses a destination that must not be replaced.

    Raises:
        OutputError: something is there and `force` is False, or it is not an artifact.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not force:
        raise OutputError(f"the output {path} exists already", hint="Choose another --output, or pass --force.")
    replaceable = path.is_dir() and not path.is_symlink()
    if not replaceable or (any(path.iterdir()) and not (path / manifest.FILE_NAME).is_file()):
        raise OutputError(
            f"the output {path} exists and is not an artifact, so --force does not replace it",
            hint="Choose another --output, or remove it yourself.",
        )


@contextmanager
def new_folder(destination: Path, *, force: bool) -> Iterator[Path]:
    """Gives a temporary folder that becomes `destination` when the block ends without an error.

    Raises:
        OutputError: the destination exists (see `check_destination`) or cannot be written.
    """
    check_destination(destination, force)
    partial: Path | None = None
    with writing(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(destination)
        partial = Path(tempfile.mkdtemp(prefix=_prefix(destination), dir=destination.parent))
        partial.chmod(0o755)
    lock = _lock(partial)
    try:
        with writing(destination):
            yield partial
            _release(partial, lock)
            check_destination(destination, force)
            _put_in_place(partial, destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            with suppress(OSError):
                os.close(lock)


@contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turns the operating system's errors into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {destination}: {error.strerror or error}",
            hint="Free some space or choose another --output; nothing was left behind.",
        ) from error


def _prefix(destination: Path) -> str:
    return f".{destination.name}.partial-"


def _put_in_place(partial: Path, destination: Path) -> None:
    """Renames the finished folder; an artifact that was there is removed only after that."""
    old = None
    if destination.exists():
        old = Path(tempfile.mkdtemp(prefix=_prefix(destination), dir=destination.parent))
        destination.rename(old / "replaced")
    try:
        partial.rename(destination)
    except OSError:
        if old is not None:
            (old / "replaced").rename(destination)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _lock(partial: Path) -> int | None:
    """Holds a lock in the folder for as long as this process lives."""
    if fcntl is None:
        return None
    descriptor = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _release(partial: Path, lock: int | None) -> None:
    if lock is not None:
        (partial / _LOCK).unlink()


def _remove_leftovers(destination: Path) -> None:
    """Removes what killed builds left: hidden folders whose lock nobody holds."""
    if fcntl is None:
        return
    for folder in destination.parent.glob(f"{_prefix(destination)}*"):
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue  # being created or being put in place at this moment
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(descriptor)
