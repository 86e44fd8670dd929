"""Rows of GGUF tensors as float32, and whether two tensors are one matrix."""

from __future__ import annotations

import functools
import math

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from qtool.checkpoint.files import SourceFile, shown
from qtool.checkpoint.gguf_header import GgufTensor
from qtool.checkpoint.weight import FloatArray, Weight, require_finite
from qtool.errors import UnsupportedModelError

CHUNK_ELEMENTS = 2**18
"""Elements that are dequantized at once. Dequantizing makes several temporaries of the output's size; at one
megabyte each they stay in the processor's cache, which makes it two to three times faster."""

SAMPLED_ROWS = 128
MANTISSA_BITS = {"F32": 24, "F16": 11, "BF16": 8}


def gguf_weight(file: SourceFile, tensor: GgufTensor, name: str) -> Weight:
    """Returns a tensor as a weight called `name`.

    Raises:
        UnsupportedModelError: the `gguf` package cannot dequantize its type.
    """
    if not _can_dequantize(tensor.type):
        readable = ", ".join(kind.name for kind in GGMLQuantizationType if _can_dequantize(kind))
        raise UnsupportedModelError(
            f"the tensor {shown(tensor.name)} is stored as {tensor.type.name}, which cannot be dequantized; "
            f"supported: {readable}",
            hint="use a file with another quantization, such as Q8_0",
        )
    row_elements = math.prod(tensor.shape[1:])

    def read(start: int, stop: int) -> FloatArray:
        if not 0 <= start <= stop <= tensor.shape[0]:
            raise IndexError(f"{name}: rows {start}:{stop} of {tensor.shape[0]}")
        values = _read_elements(file, tensor, start * row_elements, stop * row_elements)
        return values.reshape(stop - start, *tensor.shape[1:])

    return Weight(name, tensor.shape, tensor.type.name, read)


def _read_elements(file: SourceFile, tensor: GgufTensor, start: int, stop: int) -> FloatArray:
    """Returns the elements [start, stop) of the flattened tensor.

    Blocks of quantized values lie one after the other whatever the shape, so that rows only matter to find
    the first and the last block (a row is a whole number of blocks, save in a quantized vector).
    """
    block, block_bytes = GGML_QUANT_SIZES[tensor.type]
    first, last = start // block, -(-stop // block)
    result = np.empty((last - first) * block, np.float32)
    step = max(CHUNK_ELEMENTS // block, 1)
    raw = np.empty(min(step, last - first) * block_bytes, np.uint8)
    for at in range(first, last, step):
        count = min(step, last - at)
        part = raw[: count * block_bytes]
        file.read_into(part.data, tensor.offset + at * block_bytes)
        values = require_finite(dequantize_blocks(part, tensor.type), tensor.name)
        result[(at - first) * block : (at - first + count) * block] = values
    return result[start - first * block : stop - first * block]


def dequantize_blocks(
    raw: np.ndarray[tuple[int], np.dtype[np.uint8]], stored_type: GGMLQuantizationType
) -> FloatArray:
    """Returns the values of whole blocks of one type, as a vector."""
    with np.errstate(all="ignore"):  # scales of a damaged file; the result is checked
        values: FloatArray = quants.dequantize(raw.reshape(1, -1), stored_type)
    return values.reshape(-1)


@functools.cache
def _can_dequantize(stored_type: GGMLQuantizationType) -> bool:
    """Tries it on a block of zeros, which also builds the look-up tables before threads need them."""
    try:
        dequantize_blocks(np.zeros(GGML_QUANT_SIZES[stored_type][1], np.uint8), stored_type)
    except NotImplementedError:
        return False
    return True


def precision_bits(stored_type: GGMLQuantizationType) -> float:
    """Returns about how many bits of a value survive in a type: bits for each weight, or of the mantissa."""
    block, size = GGML_QUANT_SIZES[stored_type]
    return MANTISSA_BITS.get(stored_type.name, 8 * size / block)


def same_tensor(file: SourceFile, one: GgufTensor, other: GgufTensor) -> bool:
    """Whether two tensors are the same matrix up to the rounding of their types.

    A type that keeps b bits rounds weights of a language model with a relative error (root mean square) of
    about 1.8 x 2^-b: measured 4.4 % between Q5_0 and Q8_0, 7.5 % between Q4_K and Q6_K of official Qwen2.5
    files, where this estimate says 4.5 % and 9.9 %. Twice the estimate is allowed, and never more than a
    half: unrelated matrices of one size differ by 141 %. A trained LM head closer to the embedding than that
    would lose next to nothing by being replaced, as its difference is near the less precise copy's noise.

    Only some rows are compared, evenly spaced, so that it takes milliseconds.
    """
    if one.shape != other.shape:
        return False
    weights = [gguf_weight(file, tensor, tensor.name) for tensor in (one, other)]
    rows = np.linspace(0, one.shape[0] - 1, min(SAMPLED_ROWS, one.shape[0])).astype(int).tolist()
    first, second = (np.concatenate([weight.read(row, row + 1) for row in rows]) for weight in weights)
    allowed = min(2 * 1.8 * sum(2.0 ** -precision_bits(tensor.type) for tensor in (one, other)), 0.5)
    difference = float(np.linalg.norm(first - second))
    return bool(difference <= allowed * float(np.linalg.norm(second)))
