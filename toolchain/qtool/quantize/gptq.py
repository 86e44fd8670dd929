"""GPTQ: columns are rounded one after the other, and those to come make up for what each rounding changed.

What counts is the error of the layer's output on calibration data X (tokens, in_features), which depends on X
through H = X^T X only: |(W - Q) X^T|^2 = tr((W - Q) H (W - Q)^T).

Source: GPTQ (Frantar et al. 2023, arXiv:2210.17323), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from qtool.quantize.grid import FloatArray, grid_for, inverse, to_integers
from qtool.quantize.rtn import Quantized
from qtool.quantize.schemes import Scheme

NAME = "gptq"

DAMPING = 0.1
"""What is added to the Hessian's diagonal, as a fraction of its mean. The paper's 0.01 trusts too much in a
text that has hardly more tokens than a matrix has columns."""
_BLOCK = 128
"""Columns whose errors are passed on to the columns behind them together; groups never straddle two."""
_BASE = 128
"""Size of the diagonal blocks that LAPACK factors."""
_PIECE = 512
"""Rows of a product that are computed together."""


Map = Callable[[Callable[[int], FloatArray], Iterable[int]], Iterable[FloatArray]]
"""The builtin `map`, or that of a pool."""


def inverse_factor(hessian: FloatArray, compute: Map = map) -> FloatArray:
    """Returns the upper triangular U with U^T U = inverse of the damped Hessian.

    A column that is always 0 has a row and column of zeros in H: damping makes it independent of the others.

    Args:
        hessian: float32 (features, features), symmetric and positive semidefinite, finite.
        compute: computes the pieces of large products; they are the same whatever computes them.
    """
    mean = float(np.diagonal(hessian).mean())
    damping = DAMPING * mean if mean > 0 else 1.0
    # With rows and columns in reverse order, the inverse of the lower Cholesky factor is U reversed.
    reverse = np.flip(hessian).copy()
    diagonal = np.einsum("ii->i", reverse)
    while True:
        diagonal += np.float32(damping)
        try:
            return np.ascontiguousarray(np.flip(_inverse_cholesky(reverse, compute)))
        except np.linalg.LinAlgError:  # rounding made it indefinite: enormous features beside small ones
            damping *= 10


def _inverse_cholesky(matrix: FloatArray, compute: Map) -> FloatArray:
    """Returns the inverse of the lower Cholesky factor, by halves, so that nearly all work is in products."""
    size = len(matrix)
    if size <= _BASE:
        return np.asarray(np.tril(np.linalg.inv(np.linalg.cholesky(matrix))), dtype=np.float32)
    half = size // 2
    result = np.zeros_like(matrix)
    first = result[:half, :half] = _inverse_cholesky(matrix[:half, :half], compute)
    below = _product(matrix[half:, :half], first.T, compute)
    rest = matrix[half:, half:] - _product(below, below.T, compute)
    last = result[half:, half:] = _inverse_cholesky(rest, compute)
    result[half:, :half] = -_product(last, _product(below, first, compute), compute)
    return result


def _product(a: FloatArray, b: FloatArray, compute: Map) -> FloatArray:
    pieces = compute(lambda start: a[start : start + _PIECE] @ b, range(0, len(a), _PIECE))
    return np.concatenate(list(pieces))


def quantize(
    weights: FloatArray, factor: FloatArray, scheme: Scheme, scale_type: npt.DTypeLike = np.float32
) -> Quantized:
    """Quantizes rows of a matrix; every row is independent of the others.

    A group's grid is that of its weights when its first column's turn has come, errors passed on included.
    With the factor of a diagonal Hessian this is rounding to nearest.

    Args:
        weights: float32 (rows, in_features); in_features is a multiple of the group size; finite.
        factor: `inverse_factor` of the Hessian of what is multiplied with the weights.
        scheme: an integer scheme.
        scale_type: float32 or float16; integers are chosen for the scale *after* it is rounded to this type.

    Returns:
        The integers, scales and zero points.
    """
    rows, columns = weights.shape
    size = scheme.group_size
    left = weights.T.copy()  # by columns, so that one column is contiguous
    q = np.empty((columns, rows), np.uint8)
    scale = np.empty((columns // size, rows), scale_type)
    offset = np.empty((columns // size, rows), np.float32)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty((stop - start, rows), np.float32)
        for column in range(start, stop):
            group, place = divmod(column, size)
            if place == 0:
                block = left[column : column + size]
                scale[group], offset[group] = grid_for(
                    block.min(axis=0), block.max(axis=0), scheme, scale_type
                )
                step, inverse_step = scale[group].astype(np.float32), inverse(scale[group])
            integers = to_integers(left[column], inverse_step, offset[group], scheme)
            q[column] = integers
            rounded = (integers - offset[group]) * step
            error = errors[column - start] = (left[column] - rounded) / factor[column, column]
            left[column + 1 : stop] -= factor[column, column + 1 : stop, None] * error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    zero_point = None if scheme.symmetric else np.ascontiguousarray(offset.T.astype(np.uint8))
    return Quantized(
        np.ascontiguousarray(q.T).reshape(rows, -1, size), np.ascontiguousarray(scale.T), zero_point
    )
