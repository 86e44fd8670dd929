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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from qtool.checkpoint.files import SourceFile, shown
from qtool.errors import SourceError

MAX_HEADER_BYTES = 128 * 2**20
"""Upper bound of everything before the tensors' bytes; a vocabulary of 152,000 tokens takes 6 MB."""
MAX_METADATA = 10_000
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**20

_CHUNK = 2 * 2**20
_LENGTH = struct.Struct("<Q")
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


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata that is still in the file.

    `offset` and `size` (bytes) enclose its elements.
    """

    file: SourceFile
    key: str
    element_type: GGUFValueType
    count: int
    offset: int
    size: int

    @property
    def text_bytes(self) -> int:
        """How many bytes an array of strings has without the strings' lengths."""
        return self.size - _LENGTH.size * self.count

    def raw(self) -> bytes:
        """Returns the elements as they are in the file."""
        return self.file.read(self.offset, self.size)

    def strings(self) -> list[str]:
        """Returns an array of strings.

        Raises:
            SourceError: the elements are not strings, or not UTF-8.
        """
        self._expect(GGUFValueType.STRING)
        data, position, result = self.raw(), 0, []
        length_at = _LENGTH.unpack_from
        for index in range(self.count):
            start = position + 8
            position = start + length_at(data, position)[0]
            result.append(self._decode(data[start:position], index))
        return result

    def strings_at(self, indices: Sequence[int]) -> list[str]:
        """Returns the strings at some ascending indices, stepping over the others."""
        self._expect(GGUFValueType.STRING)
        data, position, at, result = self.raw(), 0, 0, []
        length_at = _LENGTH.unpack_from
        for index in indices:
            for _ in range(index - at):
                position += 8 + length_at(data, position)[0]
            start = position + 8
            position = start + length_at(data, position)[0]
            result.append(self._decode(data[start:position], index))
            at = index + 1
        return result

    def integers(self) -> npt.NDArray[np.int64]:
        """Returns an array of 32-bit integers (such as token types)."""
        if self.element_type not in (GGUFValueType.INT32, GGUFValueType.UINT32):
            self._expect(GGUFValueType.INT32)
        stored = "<i4" if self.element_type == GGUFValueType.INT32 else "<u4"
        return np.frombuffer(self.raw(), stored).astype(np.int64)

    def _decode(self, text: bytes, index: int) -> str:
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(f"element {index} of {self.key} is not UTF-8: {shown(text)}") from error

    def _expect(self, element_type: GGUFValueType) -> None:
        if self.element_type != element_type:
            raise SourceError(
                f"{self.key} must be an array of {element_type.name}, not of {self.element_type.name}"
            )


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
        raise SourceError(f"GGUF files {what} are not supported; valid are little-endian versions 2 and 3")
    tensor_count = cursor.count("tensors", MAX_TENSORS, least_bytes=24)
    metadata_count = cursor.count("metadata entries", MAX_METADATA, least_bytes=13)
    metadata = _read_metadata(cursor, metadata_count)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise SourceError(
            f"general.alignment is {shown(alignment)}; valid are powers of two up to {MAX_ALIGNMENT}"
        )
    return GgufHeader(file, metadata, _read_tensors(cursor, tensor_count, alignment))


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, GgufValue]:
    metadata: dict[str, GgufValue] = {}
    for _ in range(count):
        key = cursor.string("a metadata key")
        if key in metadata:
            raise SourceError(f"the metadata key {shown(key)} is there twice")
        code = cursor.u32()
        if code == GGUFValueType.STRING:
            metadata[key] = cursor.string(shown(key))
        elif code == GGUFValueType.ARRAY:
            metadata[key] = cursor.array(key)
        elif code in _SCALARS:
            metadata[key] = cursor.scalar(GGUFValueType(code))
        else:
            raise SourceError(f"{shown(key)} has the unknown value type {code}; valid are 0 to 12")
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
            raise SourceError(f"the tensor {name} is there twice")
        if tensor.offset != expected:
            raise SourceError(
                f"the tensor {name} is placed at {tensor.offset}; after the one before it comes {expected}",
                hint="the file is damaged: download it again",
            )
        if offset + tensor.size > cursor.file.size:
            raise SourceError(
                f"the tensor {name} ends at byte {offset + tensor.size}, "
                f"but {shown(str(cursor.file.path), 200)} has only {cursor.file.size}",
                hint="the file is truncated: download it again",
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
        raise SourceError(
            f"the tensor {shown(name)} has {dimensions} dimensions; valid are 1 to {MAX_DIMENSIONS}"
        )
    sizes = [cursor.u64() for _ in range(dimensions)]
    code, offset = cursor.u32(), cursor.u64()
    try:
        stored_type = GGMLQuantizationType(code)
        block, block_bytes = GGML_QUANT_SIZES[stored_type]
    except (ValueError, KeyError) as error:
        raise SourceError(
            f"the tensor {shown(name)} has the unknown type {code}",
            hint="a newer gguf package may know it: pip install --upgrade gguf",
        ) from error
    if min(sizes) < 1 or sizes[0] % block:
        raise SourceError(
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
            raise SourceError(
                f"the header of {shown(str(self.file.path), 200)} announces {count} bytes at byte "
                f"{self.position}, but the file has only {self.file.size}",
                hint="the file is truncated or damaged: download it again",
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
            raise SourceError(
                f"the header of {shown(str(self.file.path), 200)} announces {value} {what}; "
                f"at most {limit} are accepted, and they must fit the file",
                hint="the file is truncated or damaged: download it again",
            )
        return value

    def string(self, what: str) -> str:
        """Returns the next string."""
        try:
            return self.take(self.u64()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(f"{what} in the header is not UTF-8") from error

    def array(self, key: str) -> GgufArray:
        """Steps over an array and returns where it lies."""
        code = self.u32()
        if code != GGUFValueType.STRING and code not in _SCALARS:
            raise SourceError(
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
        length_at = _LENGTH.unpack_from
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
            raise SourceError(
                f"the header of a GGUF file may have {MAX_HEADER_BYTES} bytes; this one has more"
            )
        while len(self._data) < stop:
            missing = max(stop - len(self._data), _CHUNK)
            self._data += self.file.read(len(self._data), min(missing, self.file.size - len(self._data)))
