"""Memory that came after a moment lies in huge pages afterwards, and its contents are the same."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool_runtime.huge_pages import HUGE_PAGE, _whole_pages, collapse_new_memory, private_memory

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_bytes(address: int) -> int:
    """Huge pages of the range that holds an address."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            found = int(match[1], 16) <= address < int(match[2], 16)
        elif found and line.startswith("AnonHugePages"):
            return int(line.split()[1]) << 10
    return 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_new_memory_is_collapsed_and_keeps_its_contents() -> None:
    if not SETTING.is_file() or "[never]" in SETTING.read_text():
        pytest.skip("this kernel gives no huge pages")
    before = private_memory()
    with mmap.mmap(-1, 16 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        pattern = bytes(range(256)) * 16
        for offset in range(0, len(memory), len(pattern)):
            memory[offset : offset + len(pattern)] = pattern
        view = ctypes.c_char.from_buffer(memory)
        middle = ctypes.addressof(view) + len(memory) // 2
        del view
        if huge_bytes(middle):
            pytest.skip("this kernel gives huge pages unasked")
        collapse_new_memory(before)
        for thread in threading.enumerate():
            if thread.name == "qtool huge pages":
                thread.join()
        if not huge_bytes(middle):
            pytest.skip("this kernel cannot collapse pages at once (before Linux 6.1)")
        assert huge_bytes(middle) >= 14 * HUGE_PAGE
        assert memory[: len(memory)] == pattern * (len(memory) // len(pattern))


RANGES = st.integers(0, 50).flatmap(
    lambda start: st.integers(1, 40).map(lambda size: (start << 19, (start + size) << 19))
)


@given(RANGES, st.lists(RANGES, max_size=4))
def test_only_whole_new_pages_are_taken(after: tuple[int, int], before: list[tuple[int, int]]) -> None:
    start, end = _whole_pages(after, before)
    assert start % HUGE_PAGE == end % HUGE_PAGE == 0
    if start < end:
        assert after[0] <= start
        assert end <= after[1]
        assert not any(after[0] < old_end <= after[1] and start < old_end for _, old_end in before)
