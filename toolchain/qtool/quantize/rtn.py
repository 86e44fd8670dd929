"""Round to nearest: each group of weights is scaled to the integer range and rounded, with no calibration.

Conventions are those of ONNX Runtime's MatMulNBits and GatherBlockQuantized: unsigned integers, groups along
the input dimension, weight = (q - zero_point) * scale.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qtool.quantize.grid import grid_for, inverse, to_integers
from qtool.quantize.schemes import Scheme

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


class Quantized(NamedTuple):
    """Rows of a quantized matrix, one integer a byte (not packed)."""

    q: ByteArray
    """(rows, groups, group_size)"""
    scale: npt.NDArray[np.floating]
    """(rows, groups), in the type that was asked for"""
    zero_point: ByteArray | None
    """(rows, groups), or None when symmetric"""


def quantize(weights: FloatArray, scheme: Scheme, scale_type: npt.DTypeLike = np.float32) -> Quantized:
    """Quantizes rows of a matrix; every row is independent of the others.

    Args:
        weights: float32 (rows, in_features); in_features is a multiple of the group size; finite.
        scheme: an integer scheme.
        scale_type: float32 or float16; integers are chosen for the scale *after* it is rounded to this type.

    Returns:
        The integers, scales and zero points.
    """
    groups = weights.reshape(weights.shape[0], -1, scheme.group_size)
    scale, offset = grid_for(groups.min(axis=-1), groups.max(axis=-1), scheme, scale_type)
    integers = to_integers(groups, inverse(scale)[..., None], offset[..., None], scheme)
    zero_point = None if scheme.symmetric else offset.astype(np.uint8)
    return Quantized(integers.astype(np.uint8), scale, zero_point)


def dequantize(quantized: Quantized, scheme: Scheme) -> FloatArray:
    """Returns the float32 weights (rows, in_features) that the integers stand for."""
    zero_point = (
        scheme.middle if quantized.zero_point is None else quantized.zero_point[..., None].astype(np.float32)
    )
    values = (quantized.q.astype(np.float32) - zero_point) * quantized.scale[..., None].astype(np.float32)
    return np.asarray(values.reshape(values.shape[0], -1), dtype=np.float32)
