"""An array in the metadata of a GGUF file, decoded on request.

A vocabulary has 300,000 strings, and opening a file for a plan needs only some of them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf.constants import GGUFValueType

from qtool.checkpoint.files import SourceFile, damaged, shown

LENGTH = struct.Struct("<Q")
"""The length before each string."""


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
        return self.size - LENGTH.size * self.count

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
        length_at = LENGTH.unpack_from
        for index in range(self.count):
            start = position + 8
            position = start + length_at(data, position)[0]
            result.append(self._decode(data[start:position], index))
        return result

    def strings_at(self, indices: Sequence[int]) -> list[str]:
        """Returns the strings at some ascending indices, stepping over the others."""
        self._expect(GGUFValueType.STRING)
        data, position, at, result = self.raw(), 0, 0, []
        length_at = LENGTH.unpack_from
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
            raise damaged(f"element {index} of {self.key} is not UTF-8: {shown(text)}") from error

    def _expect(self, element_type: GGUFValueType) -> None:
        if self.element_type != element_type:
            raise damaged(
                f"{self.key} must be an array of {element_type.name}, not of {self.element_type.name}"
            )
