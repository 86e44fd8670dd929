"""Rotation of queries and keys moves out of GroupQueryAttention where a provider's kernel does not do it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.models.graph import MICROSOFT, add_initializer, append_node
from qtool.passes.capabilities import Capabilities

_QUERY, _KEY, _LENGTHS, _COSINE, _SINE = 0, 1, 5, 7, 8
"""Inputs of GroupQueryAttention; the lengths are those of the whole sequences, less one."""


class LowerRotaryAttention(ir.passes.InPlacePass):
    """Ensures that no GroupQueryAttention rotates by itself if the provider's kernel cannot.

    The operator's rule for positions becomes nodes: the new tokens are the last of each sequence, and those
    of a first run start at 0, also where a shorter sequence of a batch is padded.
    """

    def __init__(self, capabilities: Capabilities) -> None:
        self._needed = not capabilities.supports_rotary_attention

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Puts a RotaryEmbedding in front of every query and key, if the provider needs that."""
        found = (
            [node for node in model.graph if node.op_type == "GroupQueryAttention"] if self._needed else []
        )
        nodes = [node for node in found if node.attributes.get_int("do_rotary", 0)]
        if nodes:
            positions = _positions(model.graph, nodes[0])
            for node in nodes:
                _lower(model.graph, node, positions)
        return ir.passes.PassResult(model, bool(nodes))


def _positions(graph: ir.Graph, attention: ir.Node) -> ir.Value:
    """Returns the positions of the new tokens, int64 (batch, sequence), computed in front of a node."""

    def op(name: str, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        name = f"rotary.{name}"
        return append_node(graph, name, op_type, inputs, 1, attributes=attributes, before=attention)[0]

    def constant(name: str, value: object) -> ir.Value:
        return add_initializer(graph, ir.tensor(np.asarray(value, np.int64), name=f"rotary.{name}"))

    query, lengths = attention.inputs[_QUERY], attention.inputs[_LENGTHS]
    assert query is not None and lengths is not None
    zero, one = constant("zero", 0), constant("one", 1)
    count = op("count", "Gather", op("shape", "Shape", query), one)
    total = op("total", "Add", op("last", "Cast", lengths, to=int(ir.DataType.INT64)), one)
    start = op("start", "Max", op("past", "Sub", total, count), zero)
    column = op("column", "Unsqueeze", start, constant("column_axis", [1]))
    return op("positions", "Add", column, op("steps", "Range", zero, count, one))


def _lower(graph: ir.Graph, attention: ir.Node, positions: ir.Value) -> None:
    cosine, sine = attention.inputs[_COSINE], attention.inputs[_SINE]
    for index, name in ((_QUERY, "query"), (_KEY, "key")):
        inputs = [attention.inputs[index], positions, cosine, sine]
        (rotated,) = append_node(
            graph,
            f"{attention.name}.rotated_{name}",
            "RotaryEmbedding",
            inputs,
            1,
            domain=MICROSOFT,
            before=attention,
        )
        attention.replace_input_with(index, rotated)
    attention.resize_inputs(_COSINE)
    attention.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 0)
