"""Several small integers in one byte, lowest bits first, as ONNX Runtime's quantized operators read them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]


def pack(values: ByteArray, bits: int) -> ByteArray:
    """Packs along the last dimension; a last byte that is not full is filled with zeros.

    Args:
        values: uint8 (..., count), each below 2**bits.
        bits: 2, 4 or 8.

    Returns:
        uint8 (..., ceil(count * bits / 8)).
    """
    per_byte = 8 // bits
    if per_byte == 1:
        return values
    if short := -values.shape[-1] % per_byte:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], short), np.uint8)], axis=-1)
    packed = values[..., ::per_byte].copy()
    for position in range(1, per_byte):
        packed |= values[..., position::per_byte] << np.uint8(bits * position)
    return packed


def unpack(packed: ByteArray, bits: int, count: int) -> ByteArray:
    """Returns the first `count` integers of the last dimension: the inverse of `pack`."""
    per_byte = 8 // bits
    mask = np.uint8((1 << bits) - 1)
    values = np.stack([(packed >> np.uint8(bits * position)) & mask for position in range(per_byte)], axis=-1)
    return np.asarray(values.reshape(*packed.shape[:-1], -1)[..., :count], dtype=np.uint8)
