"""Safetensors files: a checked header, and rows as float32.

Layout: a u64 length (little endian), a JSON header of that length, the tensors' bytes. The header maps each
name to {"dtype", "shape", "data_offsets": [begin, end]}, with offsets counted from the end of the header. As
in the format's reference implementation, a header has at most 100 MB and the tensors lie one after the other
without holes or overlaps.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.checkpoint.files import SourceFile, damaged, parse_json_object, shown
from qtool.checkpoint.weight import FloatArray, Weight, require_finite
from qtool.errors import SourceError

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
}
"""All whole-byte types of the format."""
READABLE_TYPES = ("BF16", "F16", "F32")
"""Those that hold unquantized weights."""
_ITEMS = {"F32": "<f4", "F16": "<u2", "BF16": "<u2", "I32": "<u4", "U8": "u1"}
"""Types that are read, and what their bytes are read as."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file: `offset` from its start, both in bytes."""

    file: SourceFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def weight(self) -> Weight:
        """Returns the tensor as a weight; its dtype must be one of `READABLE_TYPES`."""
        return Weight(self.name, self.shape, self.dtype, self.read)

    def read(self, start: int, stop: int) -> FloatArray:
        """Returns the rows [start, stop) as float32."""
        return require_finite(_as_float32(self.stored(start, stop), self.dtype), self.name)

    def stored(self, start: int, stop: int) -> NDArray[Any]:
        """Returns the rows [start, stop) as they are, 16-bit floats and signed integers as unsigned ones."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"{self.name}: rows {start}:{stop} of {self.shape[0]}")
        stored = np.empty((stop - start, *self.shape[1:]), _ITEMS[self.dtype])
        offset = self.offset + start * math.prod(self.shape[1:]) * stored.itemsize
        self.file.read_into(stored.reshape(-1).view(np.uint8).data, offset)
        return stored

    def columns(self, start: int, stop: int) -> NDArray[Any]:
        """Returns the columns [start, stop) of a matrix: floats as float32, integers as unsigned ones."""
        rows, columns = self.shape
        if not 0 <= start <= stop <= columns:
            raise IndexError(f"{self.name}: columns {start}:{stop} of {columns}")
        if stop - start == columns:
            stored = self.stored(0, rows)
        else:
            stored = np.empty((rows, stop - start), _ITEMS[self.dtype])
            first, stride = self.offset + start * stored.itemsize, columns * stored.itemsize
            pieces = (row.data for row in stored.view(np.uint8))
            self.file.read_pieces_into(pieces, range(first, first + rows * stride, stride))
        if self.dtype not in READABLE_TYPES:
            return stored
        return require_finite(_as_float32(stored, self.dtype), self.name)


def _as_float32(stored: NDArray[Any], dtype: str) -> FloatArray:
    """Converts stored values (16-bit ones as unsigned integers) exactly."""
    if dtype == "F32":
        return stored.view(np.float32)
    if dtype == "F16":
        return stored.view(np.float16).astype(np.float32)
    wide = stored.astype(np.uint32)  # BF16 is the upper half of a float32
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def read_tensors(file: SourceFile) -> dict[str, StoredTensor]:
    """Reads and checks the header of a file.

    Raises:
        SourceError: the file is truncated, or its header is malformed or does not fit the file.
    """
    where = shown(str(file.path), 200)
    if file.size < 8:
        raise damaged(f"{where} is not a safetensors file: it has only {file.size} bytes")
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > min(MAX_HEADER_BYTES, file.size - 8):
        raise SourceError(
            f"{where} is not a whole safetensors file: it announces a header of {length} bytes; "
            f"the file has {file.size}, and at most {MAX_HEADER_BYTES} are accepted",
            hint="the download is truncated, or is an error page or a pointer file: download it again",
        )
    header = parse_json_object(file.read(8, length), f"the header of {where}")
    header.pop("__metadata__", None)
    start = 8 + length
    spans, tensors = [], {}
    for name, entry in header.items():
        dtype, shape, begin, end = _checked_entry(name, entry, where)
        spans.append((begin, end, name))
        tensors[name] = StoredTensor(file, name, dtype, shape, start + begin)
    _check_spans(spans, file.size - start, where)
    return tensors


def _checked_entry(name: str, entry: object, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """Returns dtype, shape, begin and end of a header's entry."""
    what = f"the tensor {shown(name)} in {where}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged(f"{what} must have exactly dtype, shape and data_offsets, not {shown(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise damaged(f"{what} has the unknown dtype {shown(dtype)}; valid are {', '.join(ITEM_BYTES)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise damaged(f"{what} has the shape {shown(shape)}; it must be at most {MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise damaged(f"{what} has the data_offsets {shown(offsets)}; they must be two positions")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise damaged(
            f"{what} has {end - begin} bytes, but {dtype} of shape {shown(shape)} needs "
            f"{math.prod(shape) * ITEM_BYTES[dtype]}"
        )
    return dtype, tuple(shape), begin, end


def _are_sizes(value: object) -> bool:
    """Whether a value is a list of whole numbers that fit 64 bits (a boolean is not a number)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_spans(spans: list[tuple[int, int, str]], size: int, where: str) -> None:
    """Refuses tensors that overlap, leave holes, or do not end with the file."""
    position, before = 0, "the header"
    for begin, end, name in sorted(spans):
        if begin != position:
            what = "overlaps" if begin < position else "leaves a hole after"
            raise damaged(f"the tensor {shown(name)} in {where} {what} {before}")
        position, before = end, f"the tensor {shown(name)}"
    if position != size:
        raise damaged(f"the tensors in {where} take {position} bytes, but {size} follow the header")
