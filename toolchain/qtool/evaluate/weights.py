"""The weight matrices of an artifact, read back from its own integers, scales and zero points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtool.checkpoint.files import SourceFile
from qtool.checkpoint.weight import FloatArray, Weight
from qtool.errors import ArtifactError
from qtool.quantize.packing import ByteArray, unpack
from qtool.quantize.rtn import Quantized, dequantize
from qtool.quantize.schemes import Scheme
from qtool_runtime.manifest import Manifest

_EMBEDDING = "model.embed_tokens"
_QUANTIZED = {"MatMulNBits": (1, 2, 3), "GatherBlockQuantized": (0, 2, 3)}
"""Operator -> which of its inputs are integers, scales and zero points."""

_Rows = Callable[[int, int], NDArray[Any]]


def artifact_weights(folder: Path, manifest: Manifest) -> Mapping[str, Weight]:
    """Returns the matrices of an artifact by their Hugging Face names; none is read yet.

    Args:
        folder: the artifact; the sizes of its files have been checked.
        manifest: its manifest.

    Raises:
        ArtifactError: its graph refers to something that is not there.
    """
    try:
        graph = ir.load(folder / manifest.graph.file).graph
    except Exception as error:  # a parser of untrusted bytes: protobuf's and onnx-ir's errors share no base
        raise ArtifactError(f"{folder / manifest.graph.file} is not a graph: {error}") from error
    weights = {}
    for node in graph:
        if node.op_type in _QUANTIZED:
            weight = _quantized(folder, node)
            weights[weight.name] = weight
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and name.endswith(".weight") and len(tensor.shape) == 2:
            read = _rows_of(folder, tensor)
            weights[name] = Weight(name, _shape(tensor), tensor.dtype.name, _as_float32(read))
    return weights


def _quantized(folder: Path, node: ir.Node) -> Weight:
    """Returns the matrix of a node over grouped integers."""
    integers, scales, zero_points = (_initializer(node, index) for index in _QUANTIZED[node.op_type])
    bits, group = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 32)
    if integers is None or scales is None or bits not in (2, 4, 8) or group < 1:
        raise ArtifactError(f"the node {node.name} of the graph has no integers, or of {bits} bits")
    scheme = Scheme(bits, group, symmetric=zero_points is None)
    rows, groups = _shape(scales)[0], math.prod(_shape(scales)[1:])
    columns = groups * group
    row_bytes = {"integers": columns * bits // 8, "zero points": -(-groups * bits // 8)}
    for what, tensor in (("integers", integers), ("zero points", zero_points)):
        if tensor is not None and tensor.nbytes != rows * row_bytes[what]:
            raise ArtifactError(f"the node {node.name} of the graph has {tensor.nbytes} bytes of {what}")
    read_integers, read_scales = _rows_of(folder, integers), _rows_of(folder, scales)
    read_zero_points = None if zero_points is None else _rows_of(folder, zero_points)

    def unpacked(packed: NDArray[Any], count: int) -> ByteArray:
        return unpack(packed.reshape(len(packed), -1).view(np.uint8), bits, count)

    def read(start: int, stop: int) -> FloatArray:
        q = unpacked(read_integers(start, stop), columns).reshape(stop - start, groups, group)
        scale = read_scales(start, stop).reshape(stop - start, groups)
        zero_point = None if read_zero_points is None else unpacked(read_zero_points(start, stop), groups)
        return dequantize(Quantized(q, scale, zero_point), scheme)

    name = _EMBEDDING if node.op_type == "GatherBlockQuantized" else str(node.name)
    return Weight(f"{name}.weight", (rows, columns), f"int{bits}", read)


def _initializer(node: ir.Node, index: int) -> ir.ExternalTensor | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else value.const_value
    return tensor if isinstance(tensor, ir.ExternalTensor) else None


def _shape(tensor: ir.ExternalTensor) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape.numpy())


def _rows_of(folder: Path, tensor: ir.ExternalTensor) -> _Rows:
    """Returns a function that reads rows of a tensor in the data file.

    Raises:
        ArtifactError: the tensor does not lie within an existing file of the folder.
    """
    location = Path(str(tensor.location))
    file = SourceFile.at(folder / location.name)
    offset, dtype, shape = tensor.offset or 0, tensor.dtype.numpy(), _shape(tensor)
    if len(location.parts) != 1 or not 0 <= offset <= offset + tensor.nbytes <= file.size:
        raise ArtifactError(
            f"the tensor {tensor.name} lies at byte {offset} of {location}, outside the artifact's data",
            hint="Build the artifact again.",
        )
    row_bytes = tensor.nbytes // max(1, shape[0])

    def read(start: int, stop: int) -> NDArray[Any]:
        content = file.read(offset + start * row_bytes, (stop - start) * row_bytes)
        return np.frombuffer(content, dtype).reshape(stop - start, *shape[1:])

    return read


def _as_float32(read: _Rows) -> Callable[[int, int], FloatArray]:
    return lambda start, stop: read(start, stop).astype(np.float32, copy=False)
