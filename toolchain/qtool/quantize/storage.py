"""A weight matrix as grouped integers, computed from its source rows when it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qtool.checkpoint.weight import Weight
from qtool.quantize import rtn
from qtool.quantize.packing import pack
from qtool.quantize.schemes import Scheme
from qtool.storage import Part, rows_for


@dataclass(frozen=True)
class IntegerStorage:
    """Packed integers, scales and (unless symmetric) packed zero points of one matrix.

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
    def parts(self) -> tuple[Part, ...]:
        """See `qtool.storage.Storage`."""
        rows, columns = self.weight.shape
        bits, groups = self.scheme.bits, columns // self.scheme.group_size
        integers = Part(ir.DataType.UINT8, (rows, columns * bits // 8))
        scales = Part(self.scale_type, (rows, groups))
        if self.scheme.symmetric:
            return integers, scales
        return integers, scales, Part(ir.DataType.UINT8, (rows, -(-groups * bits // 8)))

    def compute(self, start: int, stop: int) -> tuple[npt.NDArray[Any], ...]:
        """See `qtool.storage.Storage`."""
        rows = rows_for(self.weight, start, stop, self.scale_type)
        q, scale, zero_point = rtn.quantize(rows, self.scheme, self.scale_type.numpy())
        packed = pack(q.reshape(len(rows), -1), self.scheme.bits)
        if zero_point is None:
            return packed, scale
        return packed, scale, pack(zero_point, self.scheme.bits)
