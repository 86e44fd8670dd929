"""One-node ONNX models over quantized matrices, run by onnxruntime: the referee of our arithmetic."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qtool.quantize.packing import pack
from qtool.quantize.rtn import Quantized
from qtool.quantize.schemes import Scheme

_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}


def gather_block_quantized(quantized: Quantized, scheme: Scheme) -> np.ndarray:
    """Returns all rows, as the embedding of an artifact gives them."""
    rows = len(quantized.q)
    return _run(
        "GatherBlockQuantized",
        {"indices": np.arange(rows)},
        {"data": pack(quantized.q.reshape(rows, -1), scheme.bits), **_scales(quantized, scheme)},
        ["data", "indices", "scale", "zero_point"],
        quantized.scale.dtype,
        bits=scheme.bits,
        block_size=scheme.group_size,
        gather_axis=0,
        quantize_axis=1,
    )


def matmul_nbits(quantized: Quantized, scheme: Scheme) -> np.ndarray:
    """Returns the matrix (rows, in_features), as the product with an identity gives it."""
    rows, groups, size = quantized.q.shape
    packed = pack(quantized.q.reshape(rows, -1), scheme.bits).reshape(rows, groups, -1)
    product = _run(
        "MatMulNBits",
        {"x": np.eye(groups * size, dtype=quantized.scale.dtype)},
        {"weight": packed, **_scales(quantized, scheme)},
        ["x", "weight", "scale", "zero_point"],
        quantized.scale.dtype,
        bits=scheme.bits,
        block_size=scheme.group_size,
        K=groups * size,
        N=rows,
        accuracy_level=0,
    )
    return product.T


def dequantize_linear(quantized: Quantized, scheme: Scheme) -> np.ndarray:
    """Returns the matrix (rows, in_features) from the standard operator, blocked (opset 21)."""
    rows, groups, size = quantized.q.shape
    kind = {4: TensorProto.UINT4, 8: TensorProto.UINT8}[scheme.bits]
    zero_points = quantized.zero_point
    if zero_points is None:
        zero_points = np.full((rows, groups), scheme.middle, np.uint8)
    initializers = {
        "q": _integers("q", kind, quantized.q.reshape(rows, -1), scheme),
        "scale": quantized.scale,
        "zero_point": _integers("zero_point", kind, zero_points, scheme),
    }
    return _run(
        "DequantizeLinear",
        {},
        initializers,
        ["q", "scale", "zero_point"],
        quantized.scale.dtype,
        domain="",
        axis=1,
        block_size=size,
    )


def _scales(quantized: Quantized, scheme: Scheme) -> dict[str, np.ndarray]:
    if quantized.zero_point is None:
        return {"scale": quantized.scale}
    return {"scale": quantized.scale, "zero_point": pack(quantized.zero_point, scheme.bits)}


def _integers(name: str, kind: int, values: np.ndarray, scheme: Scheme) -> TensorProto:
    # ONNX packs the whole tensor, not row by row: the two differ where a row has an odd count.
    data = pack(values.reshape(-1), scheme.bits).tobytes()
    return helper.make_tensor(name, kind, values.shape, data, raw=True)


def _run(
    operator: str,
    inputs: dict[str, np.ndarray],
    initializers: dict[str, np.ndarray | TensorProto],
    order: list[str],
    dtype: np.dtype,
    domain: str = "com.microsoft",
    **attributes: int,
) -> np.ndarray:
    names = [name for name in order if name in inputs or name in initializers]
    node = helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    described = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
        for name, values in inputs.items()
    ]
    constants = [
        values if isinstance(values, TensorProto) else numpy_helper.from_array(values, name)
        for name, values in initializers.items()
    ]
    output = helper.make_tensor_value_info("y", _TYPES[np.dtype(dtype)], None)
    graph = helper.make_graph([node], "one-node", described, [output], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]
