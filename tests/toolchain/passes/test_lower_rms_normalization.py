"""RMSNormalization in basic operators: none is left, and the values stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qtool_targets
from qtool.models.graph import GraphBuilder
from qtool.passes import Capabilities, capabilities_for
from qtool.passes.lower_rms_normalization import LowerRmsNormalization
from support.raw_session import distance
from support.tolerances import TOLERANCES

from .graphs import finish, operators, run, weight

HAS_KERNEL = replace(capabilities_for(qtool_targets.load("x64-fp32")), supports_rms_normalization=True)
HAS_NONE = replace(HAS_KERNEL, supports_rms_normalization=False)


def two_norms(dtype: ir.DataType, epsilons: tuple[float, float] = (1e-6, 1e-5)) -> ir.Model:
    builder = GraphBuilder("norms", dtype)
    x = builder.input("x", dtype, ["batch", "sequence", 3, 32])
    for index, epsilon in enumerate(epsilons):
        scale = builder.weight(weight(f"norm{index}.weight", 32, seed=index))
        x = builder.op(f"norm{index}", "RMSNormalization", [x, scale], axis=-1, epsilon=epsilon)
    return finish(builder, x, "batch", "sequence", 3, 32)


def lowered(model: ir.Model, capabilities: Capabilities = HAS_NONE) -> ir.passes.PassResult:
    return LowerRmsNormalization(capabilities)(model)


@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 3000.0])
@pytest.mark.parametrize("name", ["float32", "float16"])
def test_values_stay(tmp_path: Path, name: str, magnitude: float) -> None:
    """Also where the square of a float16 value is beyond float16, and where epsilon decides."""
    dtype = ir.DataType.FLOAT16 if name == "float16" else ir.DataType.FLOAT
    x = np.random.default_rng(5).standard_normal((2, 4, 3, 32)) * magnitude
    x = x.astype(name)
    before = run(two_norms(dtype), tmp_path / "before", x=x)
    model = two_norms(dtype)
    assert lowered(model).modified
    assert distance(run(model, tmp_path / "after", x=x), before) < TOLERANCES[name]["lowered"]


def test_none_is_left() -> None:
    model = two_norms(ir.DataType.FLOAT)
    lowered(model)
    assert "RMSNormalization" not in operators(model)
    assert operators(model)["ReduceMean"] == 2


def test_different_epsilons_stay_different() -> None:
    model = two_norms(ir.DataType.FLOAT, (1e-6, 1e-2))
    lowered(model)
    values = [v.const_value for name, v in model.graph.initializers.items() if "epsilon" in name]
    assert sorted(float(tensor.numpy()) for tensor in values) == pytest.approx([1e-6, 1e-2])


def test_a_provider_with_the_kernel_keeps_it() -> None:
    model = two_norms(ir.DataType.FLOAT)
    assert not lowered(model, HAS_KERNEL).modified
    assert operators(model) == {"RMSNormalization": 2}
