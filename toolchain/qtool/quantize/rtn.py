"""Round to nearest: each group of weights is scaled to the integer range and rounded, with no calibration.

Conventions are those of ONNX Runtime's MatMulNBits and GatherBlockQuantized: unsigned integers, groups along
the input dimension, weight = (q - zero_point) * scale.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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

    Symmetric: the value with the largest magnitude is mapped to the end of the range that has one more step
    (0, that is -2**(bits-1) from the middle), so its sign decides the sign of the scale; of two equal ones it
    is the negative one. Asymmetric: the range from minimum to maximum, widened to include zero, is mapped to
    [0, 2**bits - 1], and zero is exact.

    Ties matter where the source was quantized itself: half of the weights of a Q5_0 tensor lie exactly
    between two steps of a symmetric 4-bit grid. They are rounded up, as ONNX Runtime's own quantizer does. To
    the even integer, as np.rint does, costs 8 % more KL divergence; on asymmetric grids it costs nothing.

    Args:
        weights: float32 (rows, in_features); in_features is a multiple of the group size; finite.
        scheme: an integer scheme.
        scale_type: float32 or float16; integers are chosen for the scale *after* it is rounded to this type.

    Returns:
        The integers, scales and zero points.
    """
    groups = weights.reshape(weights.shape[0], -1, scheme.group_size)
    lowest, highest = groups.min(axis=-1), groups.max(axis=-1)
    if scheme.symmetric:
        extreme = np.where(-lowest >= highest, lowest, highest)
        scale = (extreme / np.float32(-scheme.middle)).astype(scale_type)
        offset = np.full_like(lowest, scheme.middle)
    else:
        lowest, highest = np.minimum(lowest, 0), np.maximum(highest, 0)
        steps = np.float32(scheme.maximum)
        # Divided one by one, because the difference of two huge values overflows.
        scale = (highest / steps - lowest / steps).astype(scale_type)
        offset = np.rint(-lowest * _inverse(scale))
        np.clip(offset, 0, scheme.maximum, out=offset)
    scaled = groups * _inverse(scale)[..., None]
    if scheme.symmetric:
        scaled += offset[..., None]
        scaled += np.float32(0.5)
        np.floor(scaled, out=scaled)
    else:
        np.rint(scaled, out=scaled)
        scaled += offset[..., None]
    np.clip(scaled, 0, scheme.maximum, out=scaled)
    zero_point = None if scheme.symmetric else offset.astype(np.uint8)
    return Quantized(scaled.astype(np.uint8), scale, zero_point)


def dequantize(quantized: Quantized, scheme: Scheme) -> FloatArray:
    """Returns the float32 weights (rows, in_features) that the integers stand for."""
    zero_point = (
        scheme.middle if quantized.zero_point is None else quantized.zero_point[..., None].astype(np.float32)
    )
    values = (quantized.q.astype(np.float32) - zero_point) * quantized.scale[..., None].astype(np.float32)
    return np.asarray(values.reshape(values.shape[0], -1), dtype=np.float32)


def _inverse(scale: npt.NDArray[np.floating]) -> FloatArray:
    """Returns 1 / scale, and 0 where a group is all zeros or too small for the scale's type."""
    wide = scale.astype(np.float32)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / wide
    inverse[~np.isfinite(inverse)] = 0
    return inverse
