"""Matrices that a checkpoint has as integers: read bit for bit, or as the floats that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.files import shown
from qtool.checkpoint.layout import weight_shapes
from qtool.checkpoint.packed_formats import PackedFormat
from qtool.checkpoint.quantization import Quantization
from qtool.checkpoint.safetensors_file import READABLE_TYPES, StoredTensor
from qtool.checkpoint.weight import FloatArray, Weight
from qtool.errors import SourceError, UnsupportedModelError
from qtool.quantize.rtn import Quantized, dequantize
from qtool.quantize.schemes import Scheme

_ELEMENTS_AT_ONCE = 1 << 22
"""Weights that are worth reading at once where a row is spread over the whole tensor."""


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight(Weight):
    """A matrix that is quantized in the checkpoint already.

    `read` returns what the integers stand for, (q - zero_point) * scale, which is exact in float32.
    """

    scheme: Scheme
    read_integers: Callable[[int, int], Quantized]
    """(first row, row after the last) -> integers, scales as float32, and zero points unless symmetric.
    Raises a `SourceError` where they contradict the scheme."""


def quantized_weights(
    quantization: Quantization, config: QwenConfig, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, QuantizedWeight], dict[str, StoredTensor]]:
    """Returns the quantized matrices of a checkpoint, and its other tensors.

    Reads what has to be looked at before any work: the order of input features, and biases.

    Raises:
        SourceError: a tensor is missing, or does not fit the configuration.
        UnsupportedModelError: the matrices cannot be multiplied with as they are.
    """
    others = dict(tensors)
    shapes = weight_shapes(config)
    weights: dict[str, QuantizedWeight] = {}
    for name, shape in shapes.items():
        scheme = quantization.scheme_of(name)
        if scheme is None:
            continue
        rows, columns = shape
        module = name.removesuffix(".weight")
        scheme.check_columns(name, columns)
        parts = _parts(quantization.format, module, (rows, columns), scheme, others)
        _check_order(others.pop(f"{module}.g_idx", None), columns, scheme)
        bias = f"{module}.bias"
        if bias not in shapes:
            _check_no_bias(others.pop(bias, None))
        weights[name] = _weight(name, (rows, columns), scheme, quantization.format, parts)
    return weights, others


def _parts(
    packed: PackedFormat,
    module: str,
    shape: tuple[int, int],
    scheme: Scheme,
    tensors: dict[str, StoredTensor],
) -> dict[str, StoredTensor]:
    """Takes the tensors of a matrix out of a checkpoint's."""
    rows, columns = shape
    found = {}
    for suffix, part in packed.parts(rows, columns, scheme).items():
        name = f"{module}.{suffix}"
        tensor = tensors.pop(name, None)
        if tensor is None:
            raise SourceError(
                f"the checkpoint lacks the tensor {name}, though its configuration says that {module} is"
                " quantized",
                hint="the download is incomplete, or config.json belongs to another model",
            )
        if tensor.dtype not in part.types or tensor.shape != part.shape:
            raise SourceError(
                f"the tensor {name} is {tensor.dtype} of shape {tensor.shape}; with {scheme.bits} bits and"
                f" groups of {scheme.group_size} it must be {' or '.join(part.types)} of shape {part.shape}",
                hint="the configuration and the weights belong to different models",
            )
        found[suffix] = tensor
    return found


def _check_order(g_idx: StoredTensor | None, columns: int, scheme: Scheme) -> None:
    """Refuses groups of input features that are not neighbours.

    `g_idx` names the group of each input feature. GPTQ with `desc_act` takes features in the order of their
    activations, so that a group's are scattered; MatMulNBits reads groups of neighbours only.
    """
    if g_idx is None:
        return
    if g_idx.dtype != "I32" or g_idx.shape != (columns,):
        raise SourceError(
            f"the tensor {g_idx.name} is {g_idx.dtype} of shape {g_idx.shape}, not I32 of ({columns},)",
            hint="the configuration and the weights belong to different models",
        )
    expected = np.arange(columns, dtype=np.uint32) // np.uint32(scheme.group_size)
    if not np.array_equal(g_idx.stored(0, columns), expected):
        raise UnsupportedModelError(
            f"{shown(g_idx.name)} scatters the input features of a group over the matrix (desc_act), but"
            " MatMulNBits has groups of neighbouring features only",
            hint="take a checkpoint that was quantized with desc_act=False, as the official ones are, or the"
            " original model with --recipe balanced",
        )


def _check_no_bias(bias: StoredTensor | None) -> None:
    """Refuses a bias where the architecture has none; AutoGPTQ writes zeros for those."""
    if bias is None:
        return
    if bias.dtype not in READABLE_TYPES or len(bias.shape) != 1 or bias.read(0, bias.shape[0]).any():
        raise UnsupportedModelError(
            f"the checkpoint has the tensor {shown(bias.name)}, a bias that this architecture does not have",
            hint="take a checkpoint without it; zeros would be left away",
        )


def _weight(
    name: str,
    shape: tuple[int, int],
    scheme: Scheme,
    packed: PackedFormat,
    parts: Mapping[str, StoredTensor],
) -> QuantizedWeight:
    def read_integers(start: int, stop: int) -> Quantized:
        quantized = packed.read(parts, scheme, start, stop)
        if not scheme.symmetric:
            return quantized
        if quantized.zero_point is not None and (quantized.zero_point != scheme.middle).any():
            raise SourceError(
                f"the zero points of {name} are not all {scheme.middle}, though its configuration says that"
                " it is symmetric",
                hint="the file is damaged, or config.json belongs to another model",
            )
        return Quantized(quantized.q, quantized.scale, None)

    def read(start: int, stop: int) -> FloatArray:
        return dequantize(read_integers(start, stop), scheme)

    return QuantizedWeight(
        name=name,
        shape=shape,
        stored_type=scheme.algorithm,
        read=read,
        rows_at_once=max(1, _ELEMENTS_AT_ONCE // shape[1]) if packed.by_columns else 1,
        scheme=scheme,
        read_integers=read_integers,
    )
