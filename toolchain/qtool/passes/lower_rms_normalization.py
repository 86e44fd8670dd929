"""RMSNormalization is written out in basic operators where a provider has no kernel for it.

ONNX Runtime recognizes the pattern and fuses it again into a kernel of its own where it has one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.models.graph import add_initializer, append_node
from qtool.passes.capabilities import Capabilities
from qtool.passes.linear import replace


class LowerRmsNormalization(ir.passes.InPlacePass):
    """Ensures that no RMSNormalization is left if the provider has no kernel for it."""

    def __init__(self, capabilities: Capabilities) -> None:
        self._needed = not capabilities.supports_rms_normalization

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Writes out every RMSNormalization, if the provider needs that."""
        nodes = [node for node in model.graph if node.op_type == "RMSNormalization"] if self._needed else []
        for node in nodes:
            _lower(model.graph, node)
        return ir.passes.PassResult(model, bool(nodes))


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    """Writes x / sqrt(mean(x^2) + epsilon) * scale in float32 arithmetic where x is float16."""
    x, scale = node.inputs
    assert x is not None and scale is not None and scale.const_value is not None
    dtype = scale.const_value.dtype
    epsilon = node.attributes.get_float("epsilon", 1e-5)

    def op(suffix: str, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return append_node(
            graph, f"{node.name}.{suffix}", op_type, inputs, 1, attributes=attributes, before=node
        )[0]

    def constant(name: str, value: object, kind: ir.DataType) -> ir.Value:
        if name in graph.initializers:
            return graph.initializers[name]
        return add_initializer(graph, ir.tensor(np.asarray(value, kind.numpy()), name=name))

    wide = op("wide", "Cast", x, to=int(ir.DataType.FLOAT)) if dtype != ir.DataType.FLOAT else x
    square = op("square", "Pow", wide, constant("rms.two", 2.0, ir.DataType.FLOAT))
    mean = op("mean", "ReduceMean", square, constant("rms.axis", [-1], ir.DataType.INT64), keepdims=1)
    shifted = op("shifted", "Add", mean, constant(f"rms.epsilon.{epsilon:g}", epsilon, ir.DataType.FLOAT))
    root = op("root", "Sqrt", shifted)
    normal = op("normal", "Div", wide, root)
    narrow = op("narrow", "Cast", normal, to=int(dtype)) if dtype != ir.DataType.FLOAT else normal
    replace(graph, node.outputs[0], op("scaled", "Mul", narrow, scale), [node])
