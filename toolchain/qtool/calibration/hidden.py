"""The two ends of a decoder in numpy: what its first layer reads, and what its LM head reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qtool.checkpoint import Weight

FloatArray = NDArray[np.float32]

TABLE_ROWS_AT_ONCE = 8192
"""Rows of an embedding or LM head that are read together."""


def gather(
    table: Weight, ids: NDArray[np.int64], change: Callable[[FloatArray], FloatArray] | None = None
) -> FloatArray:
    """Looks rows up in a table that is read by and by.

    Args:
        table: (tokens, features).
        ids: token ids of any shape.
        change: what is done to rows before they are used, a function of each row alone.

    Returns:
        float32 (*ids.shape, features).
    """
    found = np.empty((*ids.shape, table.shape[1]), np.float32)
    for start in range(0, table.shape[0], TABLE_ROWS_AT_ONCE):
        stop = min(start + TABLE_ROWS_AT_ONCE, table.shape[0])
        here = (ids >= start) & (ids < stop)
        if here.any():
            rows = table.read(start, stop)[ids[here] - start]
            found[here] = rows if change is None else change(rows)
    return found


def normalize(hidden: FloatArray, scale: FloatArray, epsilon: float) -> FloatArray:
    """RMSNorm of the last dimension."""
    mean_square = np.square(hidden).mean(axis=-1, keepdims=True)
    return np.asarray(hidden / np.sqrt(mean_square + np.float32(epsilon)) * scale, dtype=np.float32)
