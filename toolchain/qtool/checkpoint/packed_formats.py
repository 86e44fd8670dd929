"""How GPTQ, AWQ and Olive lay out the integers of a matrix in a safetensors file.

A matrix of shape (out_features, in_features) has `qweight`, `scales` and `qzeros`, and means
(q - zero_point) * scale, with one scale and zero point for each group of input features.

Sources: AutoGPTQ 0.7's and GPTQModel's `QuantLinear.pack`, AutoAWQ's `WQLinear_GEMM.from_linear`, Olive's
`QuantModule` and `pack_to_uint8`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from qtool.checkpoint.safetensors_file import READABLE_TYPES, StoredTensor
from qtool.errors import UnsupportedModelError
from qtool.quantize.packing import ByteArray, unpack
from qtool.quantize.rtn import Quantized
from qtool.quantize.schemes import Scheme

Words = NDArray[np.uint32]

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column that the first, second, … four bits of a 32-bit word belong to."""


class Part(NamedTuple):
    """What a tensor of a matrix has to be."""

    types: tuple[str, ...]
    """In safetensors' words."""
    shape: tuple[int, ...]


class PackedFormat(Protocol):
    """A way to store a matrix of integers."""

    @property
    def by_columns(self) -> bool:
        """Whether input features come first, so that few rows are as slow to read as many."""

    def parts(self, rows: int, columns: int, scheme: Scheme) -> dict[str, Part]:
        """Returns the tensors of a matrix by their names behind the module's."""

    def read(self, parts: Mapping[str, StoredTensor], scheme: Scheme, start: int, stop: int) -> Quantized:
        """Returns the rows [start, stop), with a zero point for every group, scales as float32."""


@dataclass(frozen=True)
class GptqFormat:
    """AutoGPTQ's layout: 32-bit words of input features for integers, of output features for zero points.

    Args:
        zero_point_offset: what was subtracted from zero points before they were stored: 1 in the first
            version of the format ("gptq"), 0 in the second ("gptq_v2").
    """

    zero_point_offset: int
    by_columns: bool = True

    def parts(self, rows: int, columns: int, scheme: Scheme) -> dict[str, Part]:
        """See `PackedFormat`."""
        groups = columns // scheme.group_size
        return {
            "qweight": Part(("I32",), (columns * scheme.bits // 32, rows)),
            "qzeros": Part(("I32",), (groups, rows * scheme.bits // 32)),
            "scales": Part(READABLE_TYPES, (groups, rows)),
        }

    def read(self, parts: Mapping[str, StoredTensor], scheme: Scheme, start: int, stop: int) -> Quantized:
        """See `PackedFormat`."""
        bits = scheme.bits
        words = parts["qweight"].columns(start, stop)
        q = np.empty((len(words), 32 // bits, stop - start), np.uint8)
        for place in range(32 // bits):
            q[:, place] = _field(words, place, bits)
        zero_points = _columns_of_words(parts["qzeros"], tuple(range(32 // bits)), bits, start, stop)
        if self.zero_point_offset:
            self._check_zero_points(zero_points, parts["qzeros"].name, scheme)
            zero_points += np.uint8(self.zero_point_offset)
        return _quantized(
            q.reshape(q.shape[0] * q.shape[1], stop - start),
            parts["scales"].columns(start, stop),
            zero_points,
        )

    def _check_zero_points(self, stored: ByteArray, name: str, scheme: Scheme) -> None:
        """Refuses a zero point that one reader of this format takes for 0 and another for 2**bits."""
        if stored.max(initial=0) == scheme.maximum:
            raise UnsupportedModelError(
                f"the tensor {name} has the zero point {scheme.maximum} in the first version of the GPTQ"
                f" format, where programs disagree whether it means 0 or {scheme.maximum + 1}",
                hint="take a checkpoint in the second version of the format (gptq_v2), or one with sym=True",
            )


@dataclass(frozen=True)
class AwqFormat:
    """AutoAWQ's "gemm" layout: 32-bit words of eight output features, which are interleaved."""

    by_columns: bool = True

    def parts(self, rows: int, columns: int, scheme: Scheme) -> dict[str, Part]:
        """See `PackedFormat`."""
        groups = columns // scheme.group_size
        return {
            "qweight": Part(("I32",), (columns, rows * scheme.bits // 32)),
            "qzeros": Part(("I32",), (groups, rows * scheme.bits // 32)),
            "scales": Part(READABLE_TYPES, (groups, rows)),
        }

    def read(self, parts: Mapping[str, StoredTensor], scheme: Scheme, start: int, stop: int) -> Quantized:
        """See `PackedFormat`."""
        q, zero_points = (
            _columns_of_words(parts[name], _AWQ_ORDER, scheme.bits, start, stop)
            for name in ("qweight", "qzeros")
        )
        return _quantized(q, parts["scales"].columns(start, stop), zero_points)


@dataclass(frozen=True)
class OliveFormat:
    """Olive's layout, which is that of ONNX Runtime's operators: bytes of neighbouring input features."""

    by_columns: bool = False

    def parts(self, rows: int, columns: int, scheme: Scheme) -> dict[str, Part]:
        """See `PackedFormat`."""
        groups = columns // scheme.group_size
        parts = {
            "qweight": Part(("U8",), (rows, columns * scheme.bits // 8)),
            "scales": Part(READABLE_TYPES, (rows, groups)),
        }
        if not scheme.symmetric:
            parts["qzeros"] = Part(("U8",), (rows, -(-groups * scheme.bits // 8)))
        return parts

    def read(self, parts: Mapping[str, StoredTensor], scheme: Scheme, start: int, stop: int) -> Quantized:
        """See `PackedFormat`."""
        scales = parts["scales"].read(start, stop)
        groups = scales.shape[1]
        q = unpack(parts["qweight"].stored(start, stop), scheme.bits, groups * scheme.group_size)
        if scheme.symmetric:
            zero_points = np.full(scales.shape, scheme.middle, np.uint8)
        else:
            zero_points = unpack(parts["qzeros"].stored(start, stop), scheme.bits, groups)
        return Quantized(q.reshape(len(q), groups, scheme.group_size), scales, zero_points)


def _field(words: Words, place: int, bits: int) -> Any:
    """Returns the integer at one place of every word, counted from the lowest bits."""
    return (words >> np.uint32(place * bits)) & np.uint32((1 << bits) - 1)


def _columns_of_words(
    tensor: StoredTensor, order: tuple[int, ...], bits: int, start: int, stop: int
) -> ByteArray:
    """Returns the columns [start, stop) of a matrix of which a word holds several neighbouring columns.

    Args:
        tensor: the words.
        order: which of a word's columns is at its first, second, … place.
        bits: of one integer.
        start: first column.
        stop: column after the last.
    """
    count = len(order)
    first, last = start // count, -(-stop // count)
    words = tensor.columns(first, last)
    values = np.empty((*words.shape, count), np.uint8)
    for place, column in enumerate(order):
        values[..., column] = _field(words, place, bits)
    return values.reshape(len(words), words.shape[1] * count)[:, start - first * count : stop - first * count]


def _quantized(q: ByteArray, scales: NDArray[np.float32], zero_points: ByteArray) -> Quantized:
    """Returns rows from arrays whose first dimension is that of input features, or of their groups."""
    (columns, rows), groups = q.shape, len(scales)
    by_rows = np.ascontiguousarray(q.T).reshape(rows, groups, columns // groups)
    return Quantized(by_rows, np.ascontiguousarray(scales.T), np.ascontiguousarray(zero_points.T))
