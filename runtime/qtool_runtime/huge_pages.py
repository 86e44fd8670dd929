"""Huge pages for the weights that ONNX Runtime has packed into its own memory (Linux).

Decoding streams through all weights for each token: with pages of 4 kB, looking up 70,000 addresses for 280
MB takes some percent of the time. Kernels mostly give huge pages only to memory that asks for them, and
ONNX Runtime does not; so this asks in its place, once the memory is filled.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path

HUGE_PAGE = 2 << 20
"""Bytes, on x86-64 and on arm64 with pages of 4 kB."""

MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
"""Advice to the kernel, from `mman-common.h`. The second, since Linux 6.1, moves what is there at once."""

Ranges = list[tuple[int, int]]


def private_memory() -> Ranges:
    """Returns start and end of all writable memory that belongs to no file; nothing without a /proc."""
    if sys.platform != "linux":
        return []
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    ranges = []
    for fields in map(str.split, lines):
        if fields[1].startswith("rw") and (len(fields) == 5 or fields[5] == "[heap]"):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            ranges.append((start, end))
    return ranges


def collapse_new_memory(before: Ranges) -> None:
    """Moves memory that came since into huge pages, in a thread of its own.

    It takes 0.1 s for 100 MB. Where the kernel cannot or may not, nothing happens.

    Args:
        before: what `private_memory` returned earlier.
    """
    added = [
        (start, end)
        for after in private_memory()
        for start, end in [_whole_pages(after, before)]
        if end > start
    ]
    if added:
        threading.Thread(target=_collapse, args=(added,), name="qtool huge pages", daemon=True).start()


def _whole_pages(after: tuple[int, int], before: Ranges) -> tuple[int, int]:
    """Returns the whole huge pages of a range, behind what was there before: ranges grow at their ends."""
    start, end = after
    start = max([start, *(old_end for _, old_end in before if start < old_end <= end)])
    return -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE


def _collapse(ranges: Ranges) -> None:
    library = ctypes.CDLL(None)
    for start, end in ranges:
        address, size = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
        if library.madvise(address, size, MADV_HUGEPAGE) == 0:
            library.madvise(address, size, MADV_COLLAPSE)
