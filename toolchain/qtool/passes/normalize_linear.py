"""Linear layers as torch exports them, x @ transpose(weight), take the form of `passes.linear`."""

from __future__ import annotations

import onnx_ir as ir

from qtool.models.graph import MICROSOFT, append_node
from qtool.passes.linear import replace
from qtool.storage import StoredTensor


class NormalizeLinear(ir.passes.InPlacePass):
    """Requires stored weights; ensures FusedMatMul for every MatMul with a transposed one.

    The new node is named after torch's scope: "/model/layers.0/mlp/up_proj/MatMul" becomes
    "model.layers.0.mlp.up_proj".
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces every product with a transposed weight."""
        changed = False
        for node in list(model.graph):
            transpose = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] else None
            if transpose is None or not _transposes_weight(transpose):
                continue
            name = (node.name or "linear").removesuffix("/MatMul").strip("/").replace("/", ".")
            (output,) = append_node(
                model.graph,
                name,
                "FusedMatMul",
                [node.inputs[0], transpose.inputs[0]],
                1,
                domain=MICROSOFT,
                attributes={"transB": 1},
                before=node,
            )
            replace(model.graph, node.outputs[0], output, [node])
            if not transpose.outputs[0].uses():
                model.graph.remove(transpose, safe=True)
            changed = True
        return ir.passes.PassResult(model, changed)


def _transposes_weight(node: ir.Node) -> bool:
    """Whether a node swaps the two dimensions of a stored weight."""
    value = node.inputs[0] if node.op_type == "Transpose" else None
    if value is None or not isinstance(value.const_value, StoredTensor) or len(value.const_value.shape) != 2:
        return False
    return tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0)
