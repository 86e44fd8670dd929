"""The grid of one group of weights: scale and zero point, and how a value is rounded to an integer on it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qtool.quantize.schemes import Scheme

FloatArray = npt.NDArray[np.float32]


class Grid(NamedTuple):
    """Scales and zero points of some groups; arrays of one shape."""

    scale: npt.NDArray[np.floating]
    """In the type that was asked for."""
    offset: FloatArray
    """The zero point, a whole number."""


def grid_for(lowest: FloatArray, highest: FloatArray, scheme: Scheme, scale_type: npt.DTypeLike) -> Grid:
    """Chooses the grid on which a group's extremes are just representable.

    Symmetric: the value with the largest magnitude is mapped to the end of the range that has one more step
    (0, that is -2**(bits-1) from the middle), so its sign decides the sign of the scale; of two equal ones it
    is the negative one. Asymmetric: the range from minimum to maximum, widened to include zero, is mapped to
    [0, 2**bits - 1], and zero is exact.

    Args:
        lowest: minimum of each group, float32, finite.
        highest: maximum of each group, of the same shape.
        scheme: an integer scheme.
        scale_type: float32 or float16.
    """
    if scheme.symmetric:
        extreme = np.where(-lowest >= highest, lowest, highest)
        scale = (extreme / np.float32(-scheme.middle)).astype(scale_type)
        return Grid(scale, np.full_like(lowest, scheme.middle))
    lowest, highest = np.minimum(lowest, 0), np.maximum(highest, 0)
    steps = np.float32(scheme.maximum)
    # Divided one by one, because the difference of two huge values overflows.
    scale = (highest / steps - lowest / steps).astype(scale_type)
    offset = np.rint(-lowest * inverse(scale))
    return Grid(scale, np.clip(offset, 0, scheme.maximum, out=offset))


def to_integers(
    values: FloatArray, inverse_scale: FloatArray, offset: FloatArray, scheme: Scheme
) -> FloatArray:
    """Rounds values to integers on a grid; all arrays broadcast. Returns whole numbers as float32.

    Ties matter where the source was quantized itself: half of the weights of a Q5_0 tensor lie exactly
    between two steps of a symmetric 4-bit grid. They are rounded up, as ONNX Runtime's own quantizer does. To
    the even integer, as np.rint does, costs 8 % more KL divergence; on asymmetric grids it costs nothing.
    """
    scaled = values * inverse_scale
    if scheme.symmetric:
        scaled += offset
        scaled += np.float32(0.5)
        np.floor(scaled, out=scaled)
    else:
        np.rint(scaled, out=scaled)
        scaled += offset
    return np.clip(scaled, 0, scheme.maximum, out=scaled)


def inverse(scale: npt.NDArray[np.floating]) -> FloatArray:
    """Returns 1 / scale, and 0 where a group is all zeros or too small for the scale's type."""
    wide = scale.astype(np.float32)
    with np.errstate(divide="ignore", over="ignore"):
        result = np.float32(1) / wide
    result[~np.isfinite(result)] = 0
    return result
