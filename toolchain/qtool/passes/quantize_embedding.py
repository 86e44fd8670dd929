"""The token embedding becomes GatherBlockQuantized where it is stored as integers.

Its initializers and those of a tied LM head with the same scheme come from equal storages, so the data file
holds them once. (One initializer with a Reshape between the two uses would be copied by ONNX Runtime.)
"""

from __future__ import annotations

import onnx_ir as ir

from qtool.models.graph import MICROSOFT, add_initializer, append_node
from qtool.passes.linear import replace
from qtool.quantize.schemes import Scheme
from qtool.quantize.storage import Calibrated, integer_storage
from qtool.storage import FloatStorage, StoredTensor


class QuantizeEmbedding(ir.passes.InPlacePass):
    """Requires Gather over a float weight of two dimensions; ensures GatherBlockQuantized in its place."""

    def __init__(self, scheme: Scheme, calibrated: Calibrated) -> None:
        self._calibrated = calibrated
        self._scheme = scheme

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces every lookup whose scheme is integer."""
        changed = False
        for node in list(model.graph):
            table = (
                node.inputs[0].const_value
                if node.op_type == "Gather" and node.inputs[0] is not None
                else None
            )
            if not isinstance(table, StoredTensor) or not isinstance(table.storage, FloatStorage):
                continue
            if self._scheme.is_integer and len(table.shape) == 2:
                self._quantize(model.graph, node, table.storage)
                changed = True
        return ir.passes.PassResult(model, changed)

    def _quantize(self, graph: ir.Graph, node: ir.Node, table: FloatStorage) -> None:
        storage = integer_storage(table, self._scheme, self._calibrated)
        name = node.name or "embedding"
        parts = ["q", "scale"] if self._scheme.symmetric else ["q", "scale", "zero_point"]
        values = [
            add_initializer(graph, StoredTensor(f"{name}.{part}", storage, index))
            for index, part in enumerate(parts)
        ]
        (output,) = append_node(
            graph,
            name,
            "GatherBlockQuantized",
            [values[0], node.inputs[1], *values[1:]],
            1,
            domain=MICROSOFT,
            attributes={
                "bits": self._scheme.bits,
                "block_size": self._scheme.group_size,
                "gather_axis": 0,
                "quantize_axis": 1,
            },
            before=node,
        )
        replace(graph, node.outputs[0], output, [node])
