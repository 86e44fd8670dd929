"""A float16 graph and its float32 twin: the same weights, computed in the other type."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

Array = np.ndarray


def write_float32_twin(artifact: Path, folder: Path) -> Path:
    """Writes what `RawSession` needs of an artifact, with float32 wherever its graph has float16.

    Every value of the weights stays, so that only the arithmetic differs.
    """
    folder.mkdir()
    model = onnx.load(artifact / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", TensorProto.FLOAT16):
                attribute.i = TensorProto.FLOAT
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="data")
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["kv_cache"]["dtype"] = "float32"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def mean_divergence(expected: Array, found: Array) -> float:
    """Returns the mean KL divergence of rows of logits from those expected, in nats."""
    one, other = (_log_softmax(np.asarray(logits, np.float64)) for logits in (expected, found))
    return float((np.exp(one) * (one - other)).sum(axis=-1).mean())


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
