"""Computes the tensors of one or several artifacts and writes each where it belongs.

Work goes by chunks of rows, in a few threads; a chunk is read, computed and written before its thread takes
another, so memory is bounded by threads times chunk whatever the model's size. Rows are read once for all
that is computed from them; what several artifacts hold in the same form is computed once and written to each.
The bytes depend on neither the order in which chunks finish nor the number of threads.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from qtool.artifact.interrupts import deferred_interrupts
from qtool.artifact.layout import Layout
from qtool.checkpoint.weight import Weight
from qtool.storage import Read, Storage, read_rows

_CHUNK_ELEMENTS = 1 << 18
"""Weights in a chunk: the float32 rows (1 MiB) and their temporaries stay in a core's cache."""

_position = Lock()
"""Guards a file's position where it has to be moved before each write."""

Progress = Callable[[int, int], None]
"""(bytes written, bytes in total)"""


@dataclass(frozen=True)
class _Content:
    storage: Storage
    destinations: tuple[tuple[int, tuple[int, ...]], ...]
    """(file descriptor, offset of each part)"""


@dataclass(frozen=True)
class _Chunk:
    """Rows of a tensor of the source, and all that is computed from them."""

    contents: Sequence[_Content]
    start: int
    stop: int

    def write(self) -> int:
        """Computes the rows and writes them; returns the bytes written."""
        read = _reading_once()
        return sum(self._write(content, read) for content in self.contents)

    def _write(self, content: _Content, read: Read) -> int:
        written = 0
        arrays = content.storage.compute(self.start, self.stop, read)
        for index, (part, array) in enumerate(zip(content.storage.parts, arrays, strict=True)):
            data = np.ascontiguousarray(array).view(np.uint8).reshape(-1).data
            for descriptor, offsets in content.destinations:
                _write_at(descriptor, data, offsets[index] + self.start * part.row_bytes)
                written += len(data)
        return written


def _reading_once() -> Read:
    """Returns what reads the same rows of a weight from the source only once."""
    known: dict[tuple[str, int, int], NDArray[np.float32]] = {}

    def read(weight: Weight, start: int, stop: int) -> NDArray[np.float32]:
        key = weight.name, start, stop
        if key not in known:
            known[key] = read_rows(weight, start, stop)
        return known[key]

    return read


def write_data_files(files: Sequence[tuple[Path, Layout]], threads: int, progress: Progress) -> None:
    """Writes the data files of several artifacts.

    Args:
        files: path and layout of each; the files are created.
        threads: how many chunks are computed at a time.
        progress: told after each chunk.

    Raises:
        OSError: a file cannot be written; space is reserved first, so a full disk shows at once.
        SourceError: a weight cannot be read or has values that are not finite.
    """
    total = sum(layout.size for _, layout in files)
    descriptors: list[int] = []
    try:
        for path, layout in files:
            descriptors.append(
                os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
            )
            _reserve(descriptors[-1], layout.size)
        with deferred_interrupts() as act, ThreadPoolExecutor(threads) as pool:
            _run(pool, list(_chunks(files, descriptors)), total, progress, act)
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _run(
    pool: ThreadPoolExecutor,
    chunks: list[_Chunk],
    total: int,
    progress: Progress,
    act_on_interrupt: Callable[[], None],
) -> None:
    """Writes all chunks; the first error, or Ctrl-C, stops the rest."""
    done = 0
    try:
        futures = [pool.submit(chunk.write) for chunk in chunks]
        for future in futures:
            done += future.result()
            progress(done, total)
            act_on_interrupt()
    except BaseException:
        pool.shutdown(cancel_futures=True)  # waits for the chunks that have begun
        raise


def _chunks(files: Sequence[tuple[Path, Layout]], descriptors: Sequence[int]) -> Iterator[_Chunk]:
    """Yields the chunks of every source of rows, each with all that is computed from it and where it goes."""
    sources: dict[str, dict[str, _Content]] = {}
    for _, layout in files:
        for key, placement in layout.placements.items():
            found = sources.setdefault(placement.storage.source, {})
            if key not in found:
                destinations = tuple(
                    (descriptor, other.placements[key].offsets)
                    for descriptor, (_, other) in zip(descriptors, files, strict=True)
                    if key in other.placements
                )
                found[key] = _Content(placement.storage, destinations)
    for source in sources.values():
        contents = tuple(source.values())
        shapes = [content.storage.parts[0].shape for content in contents]
        rows, widest = shapes[0][0], max(prod(shape[1:]) for shape in shapes)
        worth = max(content.storage.rows_at_once for content in contents)
        step = max(worth, _CHUNK_ELEMENTS // max(1, widest))
        for start in range(0, rows, step):
            yield _Chunk(contents, start, min(start + step, rows))


def _reserve(descriptor: int, size: int) -> None:
    """Takes the disk space of the whole file at once, where the file system can."""
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(descriptor, size)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = _write_once(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _write_once(descriptor: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    with _position:  # Windows
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)
