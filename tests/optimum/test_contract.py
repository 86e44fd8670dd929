"""What the `optimum` exporter asks of Optimum's graph, and what it says without Optimum: needs no torch."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import qtool
import qtool_targets
from qtool.checkpoint import Weight
from qtool.cli import cli
from qtool.errors import BudgetError, MissingExtraError, QtoolError
from qtool.exporters import optimum
from qtool.jobs import plan_jobs
from qtool.models.graph import MICROSOFT, add_initializer
from qtool.passes.linear import linears
from qtool.passes.normalize_linear import NormalizeLinear
from qtool.storage import FloatStorage, StoredTensor
from support.fixtures import Checkpoints
from support.tiny import write_tiny_checkpoint

UP = "model.layers.0.mlp.up_proj.weight"
FLOAT = ir.DataType.FLOAT


def weight(name: str, *shape: int) -> Weight:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return Weight(name, shape, "F32", lambda start, stop: values[start:stop])


def value(name: str, *shape: int) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(shape))


def traced(perm: tuple[int, int] = (1, 0), *, stored: bool = True) -> ir.Model:
    """Returns y = x @ transpose(weight) as torch writes it; the weight (48, 64) is stored, or an input."""
    ids, x = value("input_ids", 1), value("past_key_values.0.key", 5, 64)
    graph = ir.Graph([ids, x], [], nodes=[], opset_imports={"": 18, MICROSOFT: 1})
    if stored:
        matrix = add_initializer(graph, StoredTensor(UP, FloatStorage(weight(UP, 48, 64), FLOAT)))
    else:
        matrix = value(UP, 48, 64)
        graph.inputs.append(matrix)
    scope = "/model/layers.0/mlp/up_proj"
    transpose = ir.node("Transpose", [matrix], {"perm": perm}, name=f"{scope}/Transpose")
    product = ir.node("MatMul", [x, transpose.outputs[0]], name=f"{scope}/MatMul")
    graph.extend([transpose, product])
    graph.outputs.append(product.outputs[0])
    return ir.Model(graph, ir_version=10)


def test_a_product_with_a_transposed_weight_becomes_a_linear_layer() -> None:
    model = traced()
    assert NormalizeLinear()(model).modified
    assert [node.op_type for node in model.graph] == ["FusedMatMul"]
    (linear,) = linears(model.graph)
    assert linear.storage.weight.name == UP
    assert linear.node.name == "model.layers.0.mlp.up_proj"
    assert not NormalizeLinear()(model).modified


def test_another_permutation_is_no_transposition() -> None:
    model = traced(perm=(0, 1))
    assert not NormalizeLinear()(model).modified
    with pytest.raises(QtoolError, match=r"up_proj.weight in the operator Transpose") as caught:
        optimum._check_matrices(model.graph)
    assert "--exporter native" in caught.value.hint


def test_weights_take_the_place_of_inputs() -> None:
    model = traced(stored=False)
    optimum._insert_weights(model.graph, {UP: weight(UP, 48, 64)}, FLOAT)
    assert [found.name for found in model.graph.inputs] == ["input_ids", "past_key_values.0.key"]
    assert isinstance(model.graph.initializers[UP].const_value, StoredTensor)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({UP: (64, 48)}, r"has the tensor model.layers.0.mlp.up_proj.weight as \[48,64\], .* \(64, 48\)"),
        ({UP: (48, 64), "lm_head.weight": (9, 64)}, "lacks 1 of the checkpoint's tensors, such as lm_head"),
        ({}, "has tensors that the checkpoint has not: model.layers.0.mlp.up_proj.weight"),
    ],
    ids=["another shape", "missing", "unknown"],
)
def test_a_graph_that_does_not_fit_the_checkpoint_is_refused(
    weights: dict[str, tuple[int, ...]], message: str
) -> None:
    lazy = {name: weight(name, *shape) for name, shape in weights.items()}
    with pytest.raises(QtoolError, match=message):
        optimum._insert_weights(traced(stored=False).graph, lazy, FLOAT)


def test_the_context_that_a_budget_error_names_fits(tmp_path: Path) -> None:
    """A cache that grows by concatenation exists twice, so a token costs more than its bytes."""
    source = write_tiny_checkpoint(tmp_path / "source", max_position_embeddings=4096).folder
    (job,) = plan_jobs(source, ["x64-fp32"], exporter="optimum")
    budget = int(job.plan.device.peak / 1e6) - 1
    shipped = Path(qtool_targets.__file__).with_name("x64-fp32.toml").read_text("utf-8")
    small = tmp_path / "small.toml"
    small.write_text(shipped.replace("budget_mb = 24000", f"budget_mb = {budget}"), "utf-8")
    (job,) = plan_jobs(source, [small], exporter="optimum")
    with pytest.raises(BudgetError) as caught:
        job.plan.check_budget()
    context = re.search(r"--context (\d+) or less", caught.value.hint)
    assert context is not None
    (smaller,) = plan_jobs(source, [small], exporter="optimum", context=int(context[1]))
    smaller.plan.check_budget()


@pytest.mark.parametrize("package", ["optimum", "torch", "transformers"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, tiny_checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in list(sys.modules):
        if module == "qtool.exporters.optimum_trace" or module.startswith(f"{package}."):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    source, output = tiny_checkpoint().folder, tmp_path / "artifact"
    with pytest.raises(MissingExtraError, match=r"the exporter 'optimum' needs the package") as caught:
        qtool.build(source, target="x64-int4", exporter="optimum", output=output)
    assert "pip install 'qtool-edge[optimum]'" in caught.value.hint
    command = ["build", str(source), "--target", "x64-int4", "--exporter", "optimum", "--output", str(output)]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == MissingExtraError.exit_code
    assert "hint: Run: pip install 'qtool-edge[optimum]'" in result.stderr
    assert not result.stdout and not output.exists()
