"""The one form that a linear layer has between the exporter and quantization, and how to find it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qtool.storage import FloatStorage, StoredTensor


@dataclass(frozen=True)
class Linear:
    """A node y = FusedMatMul(x, weight, transB=1), perhaps followed by Add(y, bias)."""

    node: ir.Node
    storage: FloatStorage
    add: ir.Node | None
    bias: ir.Value | None

    @property
    def output(self) -> ir.Value:
        """What the rest of the graph reads."""
        return (self.add or self.node).outputs[0]


def linears(graph: ir.Graph) -> Iterator[Linear]:
    """Yields the linear layers of a graph in order; the graph may be changed between two of them."""
    for node in list(graph):
        if node.op_type != "FusedMatMul" or not node.attributes.get_int("transB", 0):
            continue
        weight = node.inputs[1]
        tensor = weight.const_value if weight is not None else None
        if isinstance(tensor, StoredTensor) and isinstance(tensor.storage, FloatStorage):
            add, bias = _bias(node)
            yield Linear(node, tensor.storage, add, bias)


def _bias(node: ir.Node) -> tuple[ir.Node, ir.Value] | tuple[None, None]:
    """Returns the addition of a constant vector that is the only reader of the node's output, if any."""
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None, None
    add, index = uses[0]
    other = add.inputs[1 - index]
    if other is None or other.const_value is None or len(other.const_value.shape) != 1:
        return None, None
    return add, other


def replace(graph: ir.Graph, old: ir.Value, new: ir.Value, nodes: list[ir.Node]) -> None:
    """Makes every reader of `old` read `new`, which takes its name, and removes `nodes`."""
    name, dtype, shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(nodes, safe=True)
    new.name, new.type, new.shape = name, dtype, shape
