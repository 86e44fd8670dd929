"""Reading files that nobody has vouched for: bounded, by position, and with errors that name the file.

Everything under `qtool.checkpoint` goes through here, so that an `OSError`, a bad byte or an enormous length
in a downloaded file always ends as a `SourceError` and never as a traceback or a huge allocation.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NoReturn

from qtool.errors import SourceError

MAX_JSON_BYTES = 16 * 2**20
"""Upper bound of config-like JSON files; the largest official ones are some tens of kilobytes."""


def shown(value: object, limit: int = 80) -> str:
    """Returns a foreign value for an error message: escaped, quoted and shortened to `limit` characters."""
    if isinstance(value, str):
        value = value[: limit + 1]  # a name in a hostile file may be megabytes long
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def some(values: Iterable[object], limit: int = 4) -> str:
    """Returns the first few values for an error message, and how many more there are."""
    items = list(values)
    text = ", ".join(str(value) for value in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"


def refuse_unreadable(path: Path, error: Exception) -> NoReturn:
    """Raises the `SourceError` for a path that the operating system would not give us."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    hint = ""
    if isinstance(error, PermissionError):
        hint = "check the permissions of the file and of the folders above it"
    elif isinstance(error, FileNotFoundError):
        hint = "check the spelling; a link in a download cache may point to a file that was deleted"
    raise SourceError(f"cannot read {shown(str(path), 200)}: {reason}", hint=hint) from error


def damaged(message: str) -> SourceError:
    """Returns the error for a file whose content contradicts itself or its format."""
    return SourceError(message, hint="the file is damaged or incomplete: download it again")


@dataclass(frozen=True)
class SourceFile:
    """A regular file that is read by position.

    Each read opens the file anew. That costs microseconds beside the reads themselves (hundreds of
    kilobytes), needs no lock between threads, no closing, and works where positioned reads do not exist.
    Memory mapping is avoided on purpose: mapped pages count as resident memory, which the compiler promises
    to keep small.
    """

    path: Path
    size: int
    modified_ns: int

    @classmethod
    def at(cls, path: Path) -> SourceFile:
        """Looks at a file without reading it.

        Raises:
            SourceError: it does not exist, cannot be reached, or is not a regular file.
        """
        try:
            found = path.stat()
        except (OSError, ValueError) as error:
            refuse_unreadable(path, error)
        if not stat.S_ISREG(found.st_mode):
            what = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
            raise SourceError(
                f"{shown(str(path), 200)} is {what}, not a file", hint="give a folder or a GGUF file"
            )
        return cls(path, found.st_size, found.st_mtime_ns)

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fills `target` (bytes, writable) with the bytes at `offset`.

        Raises:
            SourceError: the file is shorter, or was changed since it was opened.
        """
        self.read_pieces_into([target], [offset])

    def read_pieces_into(self, targets: Iterable[memoryview], offsets: Iterable[int]) -> None:
        """Fills each of `targets` (bytes, writable) with the bytes at the offset that goes with it.

        Raises:
            SourceError: the file is shorter, or was changed since it was opened.
        """
        try:
            with self._opened() as stream:
                for target, offset in zip(targets, offsets, strict=True):
                    self._fill(stream, target, offset)
        except (OSError, ValueError) as error:
            refuse_unreadable(self.path, error)

    def _fill(self, stream: FileIO, target: memoryview, offset: int) -> None:
        stream.seek(offset)
        filled = 0
        while filled < len(target):
            count = stream.readinto(target[filled:])
            if not count:
                raise damaged(
                    f"{shown(str(self.path), 200)} ends at byte {self.size}, "
                    f"but {offset + len(target)} were expected"
                )
            filled += count

    def read(self, offset: int, count: int) -> bytes:
        """Returns `count` bytes at `offset`; the caller has checked them against `size`."""
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_whole(self, limit: int) -> bytes:
        """Returns the whole file, or refuses one of more than `limit` bytes."""
        if self.size > limit:
            raise SourceError(
                f"{shown(str(self.path), 200)} has {self.size} bytes; at most {limit} are accepted here",
                hint="compare it with the file that the model was published with",
            )
        return self.read(0, self.size)

    def _opened(self) -> FileIO:
        """Opens the file, refusing one that is no longer what it was."""
        stream = self.path.open("rb", buffering=0)
        found = os.fstat(stream.fileno())
        if (found.st_size, found.st_mtime_ns) != (self.size, self.modified_ns):
            stream.close()
            raise SourceError(
                f"{shown(str(self.path), 200)} was changed while it was being read",
                hint="run the command again when nothing writes to the file",
            )
        return stream

    def sha256(self) -> str:
        """Returns the SHA-256 of the whole file in hexadecimal."""
        try:
            with self._opened() as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except (OSError, ValueError) as error:
            refuse_unreadable(self.path, error)


def parse_json_object(data: bytes, what: str) -> dict[str, object]:
    """Returns the JSON object in `data`.

    Args:
        data: the bytes, which must be UTF-8.
        what: how an error calls them, such as the file's path.

    Raises:
        SourceError: not UTF-8, not JSON, nested too deeply, a key given twice, or not an object.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise damaged(f"{what} is not usable: its JSON is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise damaged(f"{what} is not valid JSON: {shown(str(error), 200)}") from error
    if not isinstance(value, dict):
        raise damaged(f"{what} must hold a JSON object, not {type(value).__name__}")
    return value


def read_json_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, object]:
    """Returns the JSON object in a file of at most `limit` bytes (errors as in `parse_json_object`)."""
    return parse_json_object(SourceFile.at(path).read_whole(limit), shown(str(path), 200))


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Builds an object, refusing a key given twice (readers differ on which one counts)."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} is there twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    """Refuses NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is not a JSON value")
