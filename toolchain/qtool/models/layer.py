"""One decoder layer as graphs of its own: what its linear layers read, and what it gives to the next one.

The same builder makes them as makes the whole decoder. Weights are inputs, named as within the layer
("mlp.up_proj.weight"), so that one session serves every layer:

    hidden            float32 (batch, sequence, hidden_size)
    attention_mask    int64 (batch, sequence); ones
    past_key_values.0.key, .value    float32 (batch, key_value_heads, 0, head_dim)
    hessian           float32 (features, features), X^T X over all tokens for what the linear layers read, or
    next_hidden       float32 (batch, sequence, hidden_size)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qtool.checkpoint import QwenConfig, Weight
from qtool.models.decoder import IR_VERSION, Layer, Projections, positions_of
from qtool.models.graph import MICROSOFT, GraphBuilder

HIDDEN, NEXT_HIDDEN, HESSIAN = "hidden", "next_hidden", "hessian"
_PREFIX = "model.layers.0."


class LayerGraph(NamedTuple):
    """A part of a layer, from its input to one point."""

    model: ir.Model
    linears: tuple[str, ...]
    """The weights that are multiplied with what `hessian` is of; empty for the graph of `next_hidden`."""


class _LayerBuilder(GraphBuilder):
    """Makes inputs of weights, and notes which linear layers read what."""

    def __init__(self) -> None:
        super().__init__("layer", ir.DataType.FLOAT)
        self.readers: dict[ir.Value, list[Weight]] = {}

    def weight(self, weight: Weight) -> ir.Value:
        return self.input(weight.name.removeprefix(_PREFIX), self.dtype, weight.shape)

    def linear(self, name: str, x: ir.Value, weight: Weight, bias: Weight | None = None) -> ir.Value:
        self.readers.setdefault(x, []).append(weight)
        return super().linear(name, x, weight, bias)


def layer_graphs(
    config: QwenConfig, weights: Mapping[str, Weight], context: int, projections: Projections
) -> Sequence[LayerGraph]:
    """Writes a graph for each value that linear layers read, in the layer's order, then that of its output.

    Args:
        config: sizes of the network.
        weights: by Hugging Face names; only names and shapes are looked at.
        context: longest sequence in tokens.
        projections: the architecture's.
    """
    graphs = [_graph_to(0, config, weights, context, projections)]
    while graphs[-1].linears:
        graphs.append(_graph_to(len(graphs), config, weights, context, projections))
    return graphs


def _graph_to(
    point: int, config: QwenConfig, weights: Mapping[str, Weight], context: int, projections: Projections
) -> LayerGraph:
    """Writes the layer up to the value of this number among those that linear layers read, or to its end."""
    builder = _LayerBuilder()
    mask = builder.input("attention_mask", ir.DataType.INT64, ["batch_size", "sequence_length"])
    shape: list[int | str] = ["batch_size", "sequence_length", config.hidden_size]
    hidden = builder.input(HIDDEN, builder.dtype, shape)
    positions = positions_of(builder, mask, config, context)
    update, skip = Layer(config, weights, 0, projections).append(builder, positions, None, hidden)
    builder.graph.outputs.clear()  # keys and values
    read = list(builder.readers.items())[point : point + 1]
    if read:
        ((x, linears),) = read
        features = linears[0].shape[1]
        rows = builder.op("rows", "Reshape", [x, builder.constant("rows.shape", [-1, features])])
        hessian = builder.op(HESSIAN, "FusedMatMul", [rows, rows], domain=MICROSOFT, transA=1)
        builder.output(hessian, HESSIAN, builder.dtype, [features, features])
    else:
        linears = []
        builder.output(builder.op(NEXT_HIDDEN, "Add", [update, skip]), NEXT_HIDDEN, builder.dtype, shape)
    model = ir.Model(builder.graph, ir_version=IR_VERSION, producer_name="qtool")
    RemoveUnusedNodesPass()(model)
    needed = [value for value in builder.graph.inputs if value.uses()]
    builder.graph.inputs[:] = needed
    return LayerGraph(model, tuple(weight.name.removeprefix(_PREFIX) for weight in linears))
