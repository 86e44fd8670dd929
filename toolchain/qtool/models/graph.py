"""A small graph builder over onnx_ir: named nodes, and weights that stay on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.checkpoint.weight import Weight
from qtool.storage import ArrayStorage, FloatStorage, StoredTensor

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
OPSET = 23
"""Version of the standard operators; 23 is the first that has RMSNormalization."""


class GraphBuilder:
    """Appends nodes to a graph. Every node and value gets a readable, unique name."""

    def __init__(self, name: str, dtype: ir.DataType) -> None:
        self.dtype = dtype
        """Type of activations and of float weights."""
        self.graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET, MICROSOFT: 1})

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Declares a graph input; strings in the shape are symbolic dimensions."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        """Declares `value` as a graph output."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.graph.outputs.append(value)

    def op(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Appends a node with one output and returns that."""
        return self.multi(name, op_type, inputs, 1, domain=domain, **attributes)[0]

    def multi(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Appends a node with several outputs."""
        return append_node(self.graph, name, op_type, inputs, outputs, domain=domain, attributes=attributes)

    def constant(self, name: str, value: object, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """Returns a small constant that is kept inside the graph file."""
        return self._initializer(ir.tensor(np.asarray(value, dtype.numpy()), name=name))

    def array(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        """Returns a computed constant that is kept in the data file, in the graph's float type."""
        return self._initializer(StoredTensor(name, ArrayStorage(name, array.astype(self.dtype.numpy()))))

    def weight(self, weight: Weight) -> ir.Value:
        """Returns a checkpoint's tensor, once however often it is asked for."""
        return self._initializer(StoredTensor(weight.name, FloatStorage(weight, self.dtype)))

    def linear(self, name: str, x: ir.Value, weight: Weight, bias: Weight | None = None) -> ir.Value:
        """Appends x @ weight.T + bias, for a weight of shape (out_features, in_features)."""
        product = self.op(name, "FusedMatMul", [x, self.weight(weight)], domain=MICROSOFT, transB=1)
        if bias is None:
            return product
        return self.op(f"{name}.biased", "Add", [product, self.weight(bias)])

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        known = self.graph.initializers.get(tensor.name or "")
        return add_initializer(self.graph, tensor) if known is None else known


def append_node(
    graph: ir.Graph,
    name: str,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    outputs: int,
    *,
    domain: str = "",
    attributes: Mapping[str, Any] | None = None,
    before: ir.Node | None = None,
) -> Sequence[ir.Value]:
    """Adds a node at the end of a graph, or in front of another node, and returns its outputs.

    Outputs are called after the node: "name" for one, "name:0", "name:1" … for several.
    """
    names = [name] if outputs == 1 else [f"{name}:{index}" for index in range(outputs)]
    values = [ir.Value(name=output) for output in names]
    node = ir.node(op_type, inputs, attributes or {}, domain=domain, outputs=values, name=name)
    if before is None:
        graph.append(node)
    else:
        graph.insert_before(before, node)
    return node.outputs


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Registers a tensor as an initializer of the graph."""
    value = ir.Value(
        name=tensor.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
