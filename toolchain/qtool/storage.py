"""What the artifact's data file holds: tensors described now and computed when they are written.

A graph under construction refers to `StoredTensor`s. Each is one part of a `Storage`: a plain float weight
has one part, a quantized weight has several (integers, scales, zero points) that are computed in one pass
over the same source rows. Nothing is read before `Storage.compute` is called, and then only the rows asked
for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.checkpoint.weight import Weight
from qtool.errors import SourceError
from qtool_targets import Target

FLOAT16_MAXIMUM = 65504.0

Read = Callable[[Weight, int, int], npt.NDArray[np.float32]]
"""Reads rows of a weight, which are not to be changed: someone else may have asked for the same."""


def read_rows(weight: Weight, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Reads rows from the source."""
    return weight.read(start, stop)


@dataclass(frozen=True)
class Part:
    """One tensor of a `Storage`. Its first dimension is that of the rows the storage is computed by."""

    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the data file."""
        return prod(self.shape) * int(self.dtype.itemsize)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, so that rows can be written at their place in any order."""
        return self.nbytes // self.shape[0]


class Storage(Protocol):
    """Content of the data file that is computed by rows."""

    @property
    def key(self) -> str:
        """Identity of the content: two storages with the same key have the same bytes."""

    @property
    def source(self) -> str:
        """What the rows are computed from: storages of one source have as many rows, and read the same."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tensors, all with the same first dimension."""

    @property
    def rows_at_once(self) -> int:
        """Fewest rows that are worth computing at once."""

    def compute(self, start: int, stop: int, read: Read = read_rows) -> tuple[npt.NDArray[Any], ...]:
        """Returns the rows [start, stop) of every part. Safe to call from several threads."""


@dataclass(frozen=True)
class FloatStorage:
    """A weight as plain floats.

    Raises (in `compute`):
        SourceError: a value is too large for float16.
    """

    weight: Weight
    dtype: ir.DataType

    @property
    def key(self) -> str:
        """See `Storage`."""
        return f"{self.weight.name}:{self.dtype.name}"

    @property
    def source(self) -> str:
        """See `Storage`."""
        return self.weight.name

    @property
    def parts(self) -> tuple[Part, ...]:
        """See `Storage`."""
        return (Part(self.dtype, self.weight.shape),)

    @property
    def rows_at_once(self) -> int:
        """See `Storage`."""
        return self.weight.rows_at_once

    def compute(self, start: int, stop: int, read: Read = read_rows) -> tuple[npt.NDArray[Any], ...]:
        """See `Storage`."""
        rows = rows_for(self.weight, start, stop, self.dtype, read)
        return (rows.astype(self.dtype.numpy(), copy=False),)


@dataclass(frozen=True)
class ArrayStorage:
    """A computed constant, such as a rotary table."""

    name: str
    array: npt.NDArray[Any]

    @property
    def key(self) -> str:
        """See `Storage`."""
        return f"{self.name}:{self.array.dtype}:{'x'.join(map(str, self.array.shape))}"

    @property
    def source(self) -> str:
        """See `Storage`."""
        return self.key

    @property
    def parts(self) -> tuple[Part, ...]:
        """See `Storage`."""
        return (Part(ir.DataType.from_numpy(self.array.dtype), self.array.shape),)

    @property
    def rows_at_once(self) -> int:
        """See `Storage`."""
        return 1

    def compute(self, start: int, stop: int, read: Read = read_rows) -> tuple[npt.NDArray[Any], ...]:
        """See `Storage`."""
        return (self.array[start:stop],)


def float_type(target: Target) -> ir.DataType:
    """Returns the type that a target computes in, which scales and float weights have too."""
    return ir.DataType.FLOAT16 if target.precision.activations == "float16" else ir.DataType.FLOAT


def rows_for(
    weight: Weight, start: int, stop: int, dtype: ir.DataType, read: Read = read_rows
) -> npt.NDArray[np.float32]:
    """Reads rows, which are finite, and refuses values that the device cannot compute with.

    Args:
        weight: what to read from.
        start: first row.
        stop: row after the last.
        dtype: the type that the device computes in, with these values or with what stands for them.
        read: what reads them.

    Raises:
        SourceError: a value is too large for `dtype`.
    """
    rows = read(weight, start, stop)
    if dtype == ir.DataType.FLOAT16 and max(rows.max(), -rows.min()) > FLOAT16_MAXIMUM:
        raise SourceError(
            f"the tensor {weight.name} has values beyond float16's range (±{FLOAT16_MAXIMUM:g})",
            hint="Choose a target with float32 activations.",
        )
    return rows


class StoredTensor(ir.LazyTensor):
    """A tensor of a graph whose bytes are one part of a storage, seen in a shape of its own."""

    __slots__ = ("part", "storage")

    def __init__(
        self, name: str, storage: Storage, part: int = 0, shape: tuple[int, ...] | None = None
    ) -> None:
        described = storage.parts[part]
        self.storage = storage
        self.part = part
        view = shape or described.shape
        if prod(view) != prod(described.shape):
            raise ValueError(f"{name}: the shape {view} has not the size of {described.shape}")

        def evaluate() -> ir.TensorProtocol:
            array = storage.compute(0, described.shape[0])[part]
            return ir.tensor(array.reshape(view), name=name)

        super().__init__(evaluate, described.dtype, ir.Shape(view), name=name)
