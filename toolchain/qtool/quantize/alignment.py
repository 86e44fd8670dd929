"""Where tensors may start in an artifact's data file."""

from __future__ import annotations

_ALIGNMENT = 64
"""Every tensor starts at a multiple of this: the width of the widest vector load."""
_PAGE = 16 * 1024
_PAGE_ALIGNED_FROM = 1 << 20
"""Tensors from this size on start on a page of their own (16 KiB on recent Android devices), so that mapping
one does not touch the next."""


def alignment(nbytes: int) -> int:
    """Returns what the offset of a tensor of this size is a multiple of."""
    return _PAGE if nbytes >= _PAGE_ALIGNED_FROM else _ALIGNMENT


def aligned(offset: int, multiple: int) -> int:
    """Returns the first multiple that is not below `offset`."""
    return -(-offset // multiple) * multiple
