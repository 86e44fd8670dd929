"""A weight matrix as grouped integers: rounded from its rows when it is written, or calibrated before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.checkpoint.quantized_weights import QuantizedWeight
from qtool.checkpoint.weight import Weight
from qtool.errors import SourceError
from qtool.quantize import rtn
from qtool.quantize.packing import pack
from qtool.quantize.rtn import Quantized
from qtool.quantize.schemes import Scheme
from qtool.storage import FloatStorage, Part, Read, read_rows, rows_for


@dataclass(frozen=True)
class IntegerStorage:
    """Packed integers, scales and (unless symmetric) packed zero points of one matrix, rounded to nearest.

    Parts: uint8 (out_features, in_features * bits / 8); scale_type (out_features, groups);
    uint8 (out_features, ceil(groups * bits / 8)).
    """

    weight: Weight
    scheme: Scheme
    scale_type: ir.DataType

    def __post_init__(self) -> None:
        self.scheme.check_columns(self.weight.name, self.weight.shape[1])

    @property
    def key(self) -> str:
        """See `qtool.storage.Storage`."""
        return f"{self.weight.name}:{self.scheme}:{self.scale_type.name}"

    @property
    def rows_at_once(self) -> int:
        """See `qtool.storage.Storage`."""
        return self.weight.rows_at_once

    @property
    def source(self) -> str:
        """See `qtool.storage.Storage`."""
        return self.weight.name

    @property
    def parts(self) -> tuple[Part, ...]:
        """See `qtool.storage.Storage`."""
        rows, columns = self.weight.shape
        bits, groups = self.scheme.bits, columns // self.scheme.group_size
        integers = Part(ir.DataType.UINT8, (rows, columns * bits // 8))
        scales = Part(self.scale_type, (rows, groups))
        if self.scheme.symmetric:
            return integers, scales
        return integers, scales, Part(ir.DataType.UINT8, (rows, -(-groups * bits // 8)))

    def compute(self, start: int, stop: int, read: Read = read_rows) -> tuple[npt.NDArray[Any], ...]:
        """See `qtool.storage.Storage`."""
        rows = rows_for(self.weight, start, stop, self.scale_type, read)
        return packed(rtn.quantize(rows, self.scheme, self.scale_type.numpy()), self.scheme)


@dataclass(frozen=True)
class CalibratedStorage(IntegerStorage):
    """The same parts, calibrated before and kept in a folder, one file each, until they are written."""

    folder: Path

    @property
    def key(self) -> str:
        """See `qtool.storage.Storage`. A calibration's integers are those of one artifact."""
        return f"{super().key}:{self.folder}"

    def append(self, quantized: Quantized) -> None:
        """Keeps the next rows."""
        for path, array in zip(self._files(), packed(quantized, self.scheme), strict=True):
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(array).data)

    def compute(self, start: int, stop: int, read: Read = read_rows) -> tuple[npt.NDArray[Any], ...]:
        """See `qtool.storage.Storage`."""
        arrays = []
        for path, part in zip(self._files(), self.parts, strict=True):
            dtype, width = part.dtype.numpy(), part.shape[1]
            offset, count = start * part.row_bytes, (stop - start) * width
            array = np.fromfile(path, dtype, count, offset=offset)
            arrays.append(array.reshape(stop - start, width))
        return tuple(arrays)

    def _files(self) -> list[Path]:
        return [self.folder / f"{self.weight.name}.{index}" for index in range(len(self.parts))]


@dataclass(frozen=True)
class TakenStorage(IntegerStorage):
    """The same parts, bit for bit as the source has them; zero points may be written out that it implies.

    Raises (in `compute`):
        SourceError: a scale is not exact in the type that the device computes in.
    """

    weight: QuantizedWeight

    def compute(self, start: int, stop: int, read: Read = read_rows) -> tuple[npt.NDArray[Any], ...]:
        """See `qtool.storage.Storage`."""
        quantized = self.weight.read_integers(start, stop)
        with np.errstate(over="ignore"):
            scale = quantized.scale.astype(self.scale_type.numpy())
        if (scale != quantized.scale).any():
            raise SourceError(
                f"the scales of {self.weight.name} are not exact in {self.scale_type.name}",
                hint="Choose a target with float32 activations.",
            )
        zero_point = quantized.zero_point
        if zero_point is None and not self.scheme.symmetric:
            zero_point = np.full(scale.shape, self.scheme.middle, np.uint8)
        return packed(Quantized(quantized.q, scale, zero_point), self.scheme)


Calibrated = Mapping[tuple[str, Scheme], CalibratedStorage]
"""By a matrix's name and its scheme as the target has it."""


def integer_storage(floats: FloatStorage, scheme: Scheme, calibrated: Calibrated) -> IntegerStorage:
    """Returns what takes the place of a float matrix: integers of the source or of a calibration, if any."""
    weight = floats.weight
    if isinstance(weight, QuantizedWeight):
        if scheme not in (weight.scheme, replace(weight.scheme, symmetric=False)):
            raise ValueError(f"{weight.name} is quantized as {weight.scheme} already, not as {scheme}")
        return TakenStorage(weight, scheme, floats.dtype)
    return calibrated.get((weight.name, scheme)) or IntegerStorage(weight, scheme, floats.dtype)


def packed(quantized: Quantized, scheme: Scheme) -> tuple[npt.NDArray[Any], ...]:
    """Returns quantized rows as ONNX Runtime reads them: the parts of `IntegerStorage`."""
    integers = pack(quantized.q.reshape(len(quantized.q), -1), scheme.bits)
    if quantized.zero_point is None:
        return integers, quantized.scale
    return integers, quantized.scale, pack(quantized.zero_point, scheme.bits)
