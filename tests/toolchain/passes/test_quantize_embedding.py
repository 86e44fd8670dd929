"""The lookup of token embeddings to GatherBlockQuantized."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qtool_targets
from qtool.models.graph import GraphBuilder
from qtool.passes.quantize_embedding import QuantizeEmbedding
from qtool.quantize import rtn
from qtool.quantize.schemes import Role, scheme_for
from qtool_targets import Target

from .graphs import finish, operators, run, weight

TABLE = "model.embed_tokens.weight"
INT4, INT8 = qtool_targets.load("x64-int4"), qtool_targets.load("x64-int8")


def lookup() -> ir.Model:
    builder = GraphBuilder("lookup", ir.DataType.FLOAT)
    ids = builder.input("ids", ir.DataType.INT64, ["rows"])
    found = builder.op("embed_tokens", "Gather", [builder.weight(weight(TABLE, 50, 64)), ids])
    return finish(builder, found, "rows", 64)


@pytest.mark.parametrize("target", [INT4, INT8], ids=["asymmetric int4", "symmetric int8"])
def test_rows_are_exactly_the_dequantized_ones(tmp_path: Path, target: Target) -> None:
    model = lookup()
    assert QuantizeEmbedding(scheme_for(target, Role.EMBEDDING), {})(model).modified
    assert operators(model) == {"GatherBlockQuantized": 1}
    ids = np.array([49, 0, 7, 7])
    scheme = scheme_for(target, Role.EMBEDDING)
    expected = rtn.dequantize(rtn.quantize(weight(TABLE, 50, 64).read_all(), scheme), scheme)[ids]
    np.testing.assert_array_equal(run(model, tmp_path / "model", ids=ids), expected)


def test_a_float_embedding_stays() -> None:
    target = replace(INT4, weights=replace(INT4.weights, embedding_bits=32))
    model = lookup()
    assert not QuantizeEmbedding(scheme_for(target, Role.EMBEDDING), {})(model).modified
    assert operators(model) == {"Gather": 1}


def test_a_lookup_in_a_constant_of_the_graph_stays() -> None:
    """Such as the gathering of a length out of a shape."""
    builder = GraphBuilder("shape", ir.DataType.FLOAT)
    x = builder.input("x", ir.DataType.FLOAT, ["rows", 64])
    shape = builder.op("shape", "Shape", [x])
    model = finish(builder, builder.op("rows", "Gather", [shape, builder.constant("zero", 0)]))
    assert not QuantizeEmbedding(scheme_for(INT4, Role.EMBEDDING), {})(model).modified
