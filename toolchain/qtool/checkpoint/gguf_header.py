"""The header of a GGUF file: metadata and tensor table, read with every length checked first.

Layout (little endian; specification: ggml's docs/gguf.md, versions 2 and 3):

    magic "GGUF", u32 version, u64 tensor count, u64 metadata count
    metadata:  string key, u32 value type, value
    tensors:   string name, u32 dimensions, u64 sizes (innermost first), u32 type, u64 offset
    padding to `general.alignment`, then the tensors' bytes

A string is a u64 length and that many bytes of UTF-8; an array is a u32 element type, a u64 count and the
elements. The `gguf` package's own reader maps the whole file and makes several numpy objects for every one of
a vocabulary's 300,000 strings (12 to 16 seconds on a Qwen2.5); here arrays are stepped over and decoded on
request. The enumerations and block sizes are that package's.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from qtool.checkpoint.files import SourceFile, damaged, shown
from qtool.checkpoint.gguf_array import LENGTH, GgufArray
from qtool.errors import SourceError

MAX_HEADER_BYTES = 128 * 2**20
"""Upper bound of everything before the tensors' bytes; a vocabulary of 152,000 tokens takes 6 MB."""
MAX_METADATA = 10_000
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**20

_CHUNK = 2 * 2**20
_SCALARS: dict[int, struct.Struct] = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}


GgufValue = int | float | bool | str | GgufArray


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    `shape` is in the order of Hugging Face checkpoints (outermost first), `offset` counts from the start of
    the file, `size` is in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """A checked header."""

    file: SourceFile
    metadata: Mapping[str, GgufValue]
    tensors: Mapping[str, GgufTensor]


def read_header(file: SourceFile) -> GgufHeader:
    """Reads and checks the header.

    Raises:
        SourceError: not a GGUF file, an unknown version, or anything in it that does not fit the file.
    """
    cursor = _Cursor(file)
    magic = cursor.take(min(4, file.size))
    if magic != b"GGUF":
        raise SourceError(
            f"{shown(str(file.path), 200)} is not a GGUF file: it starts with {shown(magic)}, not b'GGUF'",
            hint="the download may be an error page or a pointer file",
        )
    version = cursor.u32()
    if version not in (2, 3):
        what = "of a big-endian machine" if version in (2 << 24, 3 << 24) else f"version {version}"
        raise SourceError(
            f"GGUF files {what} are not supported; valid are little-endian versions 2 and 3",
            hint="convert the model again with a current convert_hf_to_gguf.py",
        )
    tensor_count = cursor.count("tensors", MAX_TENSORS, least_bytes=24)
    metadata_count = cursor.count("metadata entries", MAX_METADATA, least_bytes=13)
    metadata = _read_metadata(cursor, metadata_count)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise damaged(
            f"general.alignment is {shown(alignment)}; valid are powers of two up to {MAX_ALIGNMENT}"
        )
    return GgufHeader(file, metadata, _read_tensors(cursor, tensor_count, alignment))


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, GgufValue]:
    metadata: dict[str, GgufValue] = {}
    for _ in range(count):
        key = cursor.string("a metadata key")
        if key in metadata:
            raise damaged(f"the metadata key {shown(key)} is there twice")
        code = cursor.u32()
        if code == GGUFValueType.STRING:
            metadata[key] = cursor.string(shown(key))
        elif code == GGUFValueType.ARRAY:
            metadata[key] = cursor.array(key)
        elif code in _SCALARS:
            metadata[key] = cursor.scalar(GGUFValueType(code))
        else:
            raise damaged(f"{shown(key)} has the unknown value type {code}; valid are 0 to 12")
    return metadata


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    """Reads the tensor table.

    Offsets count from the first aligned byte after the table, and each tensor starts at the first aligned
    byte after the one before it (llama.cpp refuses other files too), so that no two can share bytes.
    """
    relative = [_read_tensor(cursor) for _ in range(count)]
    start = _aligned(cursor.position, alignment)
    tensors: dict[str, GgufTensor] = {}
    expected = 0
    for tensor in relative:
        name, offset = shown(tensor.name), start + tensor.offset
        if tensor.name in tensors:
            raise damaged(f"the tensor {name} is there twice")
        if tensor.offset != expected:
            raise damaged(
                f"the tensor {name} is placed at {tensor.offset}; after the one before it comes {expected}"
            )
        if offset + tensor.size > cursor.file.size:
            raise damaged(
                f"the tensor {name} ends at byte {offset + tensor.size}, "
                f"but {shown(str(cursor.file.path), 200)} has only {cursor.file.size}"
            )
        tensors[tensor.name] = dataclasses.replace(tensor, offset=offset)
        expected = _aligned(tensor.offset + tensor.size, alignment)
    return tensors


def _aligned(position: int, alignment: int) -> int:
    """Returns the first multiple of `alignment` from `position` on."""
    return -(-position // alignment) * alignment


def _read_tensor(cursor: _Cursor) -> GgufTensor:
    """Reads one entry of the tensor table, whose offset is still relative."""
    name = cursor.string("a tensor's name")
    dimensions = cursor.u32()
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise damaged(
            f"the tensor {shown(name)} has {dimensions} dimensions; valid are 1 to {MAX_DIMENSIONS}"
        )
    sizes = [cursor.u64() for _ in range(dimensions)]
    code, offset = cursor.u32(), cursor.u64()
    try:
        stored_type = GGMLQuantizationType(code)
        block, block_bytes = GGML_QUANT_SIZES[stored_type]
    except (ValueError, KeyError) as error:
        known = ", ".join(f"{kind.value} ({kind.name})" for kind in GGML_QUANT_SIZES)
        raise SourceError(
            f"the tensor {shown(name)} has the unknown type {code}; known are {known}",
            hint="a newer gguf package may know it: pip install --upgrade gguf",
        ) from error
    if min(sizes) < 1 or sizes[0] % block:
        raise damaged(
            f"the tensor {shown(name)} has the sizes {sizes}; {stored_type.name} needs positive sizes "
            f"and a first one that is a multiple of {block}"
        )
    size = math.prod(sizes) // block * block_bytes
    return GgufTensor(name, tuple(reversed(sizes)), stored_type, offset, size)


class _Cursor:
    """A position in the header.

    The header's length is not written anywhere, so it is read in chunks as it is walked. No length from the
    file is believed before it is known to lie inside the file.
    """

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.position = 0
        self._data = bytearray()

    def take(self, count: int) -> bytes:
        """Returns the next `count` bytes."""
        start = self.position
        self.skip(count)
        self._fill(self.position)
        return bytes(self._data[start : self.position])

    def skip(self, count: int) -> None:
        """Steps over `count` bytes, which must lie inside the file."""
        if count > self.file.size - self.position:
            raise damaged(
                f"the header of {shown(str(self.file.path), 200)} announces {count} bytes at byte "
                f"{self.position}, but the file has only {self.file.size}"
            )
        self.position += count

    def u32(self) -> int:
        """Returns the next u32."""
        return int(self.scalar(GGUFValueType.UINT32))

    def u64(self) -> int:
        """Returns the next u64."""
        return int(self.scalar(GGUFValueType.UINT64))

    def scalar(self, kind: GGUFValueType) -> int | float | bool:
        """Returns the next number or boolean."""
        layout = _SCALARS[kind]
        value: int | float | bool = layout.unpack(self.take(layout.size))[0]
        # The shortest decimal that means the same float32: 1e-06, not 9.999999974752427e-07.
        return float(str(np.float32(value))) if kind == GGUFValueType.FLOAT32 else value

    def count(self, what: str, limit: int, least_bytes: int) -> int:
        """Returns the next u64, which counts things of at least `least_bytes` bytes that follow."""
        value = self.u64()
        if value > min(limit, (self.file.size - self.position) // least_bytes):
            raise damaged(
                f"the header of {shown(str(self.file.path), 200)} announces {value} {what}; "
                f"at most {limit} are accepted, and they must fit the file"
            )
        return value

    def string(self, what: str) -> str:
        """Returns the next string."""
        try:
            return self.take(self.u64()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged(f"{what} in the header is not UTF-8") from error

    def array(self, key: str) -> GgufArray:
        """Steps over an array and returns where it lies."""
        code = self.u32()
        if code != GGUFValueType.STRING and code not in _SCALARS:
            raise damaged(
                f"{shown(key)} is an array of the type {code}; valid are numbers, booleans, strings"
            )
        element_type = GGUFValueType(code)
        width = 8 if element_type == GGUFValueType.STRING else _SCALARS[code].size
        count = self.count(f"elements of {shown(key)}", MAX_HEADER_BYTES // width, least_bytes=width)
        start = self.position
        if element_type == GGUFValueType.STRING:
            self._skip_strings(count)
        else:
            self.skip(count * width)
        return GgufArray(self.file, key, element_type, count, start, self.position - start)

    def _skip_strings(self, count: int) -> None:
        """Steps over strings: the hot loop of opening a file, hence the local names."""
        position, loaded, size = self.position, len(self._data), self.file.size
        length_at = LENGTH.unpack_from
        for _ in range(count):
            if position + 8 > loaded:
                if position + 8 > size:
                    self.skip(position + 8 - self.position)  # past the end: raises
                self._fill(position + 8)
                loaded = len(self._data)
            position += 8 + length_at(self._data, position)[0]
        self.skip(position - self.position)

    def _fill(self, stop: int) -> None:
        """Loads the header up to `stop` at least."""
        if stop > MAX_HEADER_BYTES:
            raise damaged(f"the header of a GGUF file may have {MAX_HEADER_BYTES} bytes; this one has more")
        while len(self._data) < stop:
            missing = max(stop - len(self._data), _CHUNK)
            self._data += self.file.read(len(self._data), min(missing, self.file.size - len(self._data)))
