"""The cache becomes int8, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qtool.checkpoint import open_checkpoint
from qtool.exporters import export
from qtool.passes.quantize_kv_cache import QuantizeKvCache
from qtool_targets import load
from support.fixtures import Checkpoints

LAYERS, HEADS = 2, 2


@pytest.fixture
def graph(tiny_checkpoint: Checkpoints) -> ir.Model:
    return export(open_checkpoint(str(tiny_checkpoint().folder)), load("x64-fp32"), 64, "native")


def test_every_layer_gets_its_own_scales(graph: ir.Model) -> None:
    before = {value.name: value.type for value in (*graph.graph.inputs, *graph.graph.outputs)}
    (head_dim,) = {value.shape[3] for value in graph.graph.outputs if "present" in str(value.name)}
    names = [f"present.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    scales = {name: np.full((HEADS, head_dim), index + 1, np.float32) for index, name in enumerate(names)}
    QuantizeKvCache(scales)(graph)
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        cached = str(value.name).startswith(("past", "present"))
        assert value.type == (ir.TensorType(ir.DataType.INT8) if cached else before[value.name])
    nodes = [node for node in graph.graph if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == LAYERS
    for layer, node in enumerate(nodes):
        kinds = [node.attributes[f"{part}_quant_type"].as_string() for part in "kv"]
        assert kinds == ["PER_CHANNEL", "PER_CHANNEL"]
        assert node.attributes["kv_cache_bit_width"].as_int() == 8
        assert node.inputs[9:12] == (None, None, None)
        for index, value in enumerate(node.inputs[12:]):
            assert value is not None and value.const_value is not None
            expected = np.full((1, HEADS, 1, head_dim), 2 * layer + index + 1, np.float32)
            np.testing.assert_array_equal(value.const_value.numpy(), expected)


def test_a_graph_without_the_operator_is_left_alone() -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 23}), ir_version=10)
    assert QuantizeKvCache({})(model).modified is False
