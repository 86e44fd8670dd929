"""Linear layers to MatMulNBits: which are found, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qtool_targets
from qtool.checkpoint.layout import LM_HEAD
from qtool.errors import UnsupportedModelError
from qtool.models.graph import MICROSOFT, GraphBuilder
from qtool.passes import capabilities_for
from qtool.passes.linear import linears
from qtool.passes.quantize_linear import QuantizeLinear
from qtool.quantize import rtn
from qtool.quantize.formats import Formats
from qtool.quantize.schemes import Role, scheme_for
from qtool_targets import Target
from support.raw_session import distance
from support.tolerances import TOLERANCES

from .graphs import finish, operators, run, weight

UP = "model.layers.0.mlp.up_proj.weight"
INT4, INT8, FLOAT = (qtool_targets.load(name) for name in ("x64-int4", "x64-int8", "x64-fp32"))


def one_layer(bias: bool, *, columns: int = 64, name: str = UP) -> ir.Model:
    builder = GraphBuilder("linear", ir.DataType.FLOAT)
    x = builder.input("x", ir.DataType.FLOAT, ["rows", columns])
    vector = weight("up_proj.bias", 48, seed=1) if bias else None
    return finish(builder, builder.linear("up", x, weight(name, 48, columns), vector), "rows", 48)


def formats(target: Target) -> Formats:
    return {UP: scheme_for(target, Role.MLP), LM_HEAD: scheme_for(target, Role.LM_HEAD)}


def quantized(model: ir.Model, target: Target = INT4) -> ir.Model:
    capabilities = replace(capabilities_for(target), matmul_accuracy_level=0)
    return QuantizeLinear(formats(target), capabilities, {})(model).model


@pytest.mark.parametrize("target", [INT4, INT8], ids=["int4", "int8"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_values_are_those_of_the_dequantized_weights(tmp_path: Path, bias: bool, target: Target) -> None:
    model = quantized(one_layer(bias), target)
    assert operators(model) == {"MatMulNBits": 1}  # the bias is an input of it
    x = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    scheme = scheme_for(target, Role.MLP)
    matrix = rtn.dequantize(rtn.quantize(weight(UP, 48, 64).read_all(), scheme), scheme)
    expected = x @ matrix.T + (weight("up_proj.bias", 48, seed=1).read_all() if bias else 0)
    assert distance(run(model, tmp_path / "model", x=x), expected) < TOLERANCES["float32"]["reference"]


def test_a_bias_stays_an_addition_where_the_kernel_takes_none(tmp_path: Path) -> None:
    capabilities = replace(capabilities_for(INT4), matmul_accuracy_level=0, supports_matmul_bias=False)
    model = QuantizeLinear(formats(INT4), capabilities, {})(one_layer(True)).model
    assert operators(model) == {"MatMulNBits": 1, "Add": 1}
    x = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    expected = run(quantized(one_layer(True)), tmp_path / "fused", x=x)
    assert distance(run(model, tmp_path / "apart", x=x), expected) < TOLERANCES["float32"]["reference"]


def test_float_schemes_leave_the_graph_alone() -> None:
    model = one_layer(True)
    assert not QuantizeLinear(formats(FLOAT), capabilities_for(FLOAT), {})(model).modified
    assert operators(model) == {"FusedMatMul": 1, "Add": 1}


def test_the_head_has_bits_of_its_own() -> None:
    target = replace(INT4, weights=replace(INT4.weights, lm_head_bits=8))
    bits = {
        name: next(iter(quantized(one_layer(False, name=name), target).graph)).attributes["bits"].as_int()
        for name in (UP, "lm_head.weight", "model.embed_tokens.weight")  # a tied embedding is multiplied with
    }
    assert list(bits.values()) == [4, 8, 8]


def test_a_group_size_that_does_not_divide_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"up_proj\.weight has 40 input features"):
        quantized(one_layer(False, columns=40))


def test_a_sum_that_others_read_too_is_not_taken_for_a_bias() -> None:
    """The product is used twice: the addition cannot move into it."""
    builder = GraphBuilder("shared", ir.DataType.FLOAT)
    x = builder.input("x", ir.DataType.FLOAT, ["rows", 64])
    product = builder.linear("up", x, weight(UP, 48, 64))
    biased = builder.op("sum", "Add", [product, builder.weight(weight("b", 48))])
    model = finish(builder, builder.op("both", "Mul", [product, biased]), "rows", 48)
    (linear,) = linears(model.graph)
    assert (linear.add, linear.bias) == (None, None)
    assert operators(quantized(model)) == {"MatMulNBits": 1, "Add": 1, "Mul": 1}


def test_a_residual_is_not_taken_for_a_bias() -> None:
    builder = GraphBuilder("residual", ir.DataType.FLOAT)
    x = builder.input("x", ir.DataType.FLOAT, ["rows", 64])
    product = builder.linear("up", x, weight(UP, 64, 64))
    model = finish(builder, builder.op("sum", "Add", [product, x]), "rows", 64)
    assert operators(quantized(model)) == {"MatMulNBits": 1, "Add": 1}


def test_a_constant_matrix_is_not_taken_for_a_bias() -> None:
    """MatMulNBits takes a vector only."""
    builder = GraphBuilder("matrix", ir.DataType.FLOAT)
    x = builder.input("x", ir.DataType.FLOAT, [5, 64])
    matrix = builder.weight(weight("m", 5, 48))
    product = builder.linear("up", x, weight(UP, 48, 64))
    model = finish(builder, builder.op("sum", "Add", [product, matrix]), 5, 48)
    assert operators(quantized(model)) == {"MatMulNBits": 1, "Add": 1}


def test_a_product_with_anything_but_a_weight_stays() -> None:
    builder = GraphBuilder("product", ir.DataType.FLOAT)
    x = builder.input("x", ir.DataType.FLOAT, [48, 64])
    product = builder.op("square", "FusedMatMul", [x, x], domain=MICROSOFT, transB=1)
    model = finish(builder, product, 48, 48)
    assert list(linears(model.graph)) == []
    assert operators(quantized(model)) == {"FusedMatMul": 1}
