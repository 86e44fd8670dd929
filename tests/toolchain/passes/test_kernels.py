"""The tables of kernels are consistent, every shipped graph fits that of its provider, and others do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import qtool
import qtool_targets
from qtool.models.graph import MICROSOFT, GraphBuilder
from qtool.passes.check_kernels import problems
from qtool.passes.kernels import kernels_of, signatures
from qtool_targets import Target, TargetError
from qtool_targets.schema import PROVIDERS
from support.fixtures import Artifacts, Checkpoints
from support.kernels import require_int8_kv_cache

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def found_in(artifact: Path, provider: str) -> list[str]:
    graph = ir.load(artifact / "model.onnx").graph
    return [f"{node.name}: {problem}" for node, problem in problems(graph, kernels_of(provider))]


class TestTables:
    @pytest.mark.parametrize("provider", PROVIDERS)
    def test_every_provider_has_one_with_its_sources(self, provider: str) -> None:
        table = kernels_of(provider)
        assert table.provider == provider
        assert len(table.source) >= 3

    @pytest.mark.parametrize("provider", PROVIDERS)
    def test_rows_speak_of_operators_types_and_inputs_that_exist(self, provider: str) -> None:
        for key, kernel in kernels_of(provider).kernels.items():
            signature = signatures()[key]
            assert set(kernel.types) <= {kind.removesuffix("*") for _, kind in signature.inputs}, key
            assert {*kernel.without, *kernel.needs} <= {name for name, _ in signature.inputs}, key
            assert bool(kernel.since) is (key[0] == ""), key
            assert all(kernel.types.values()), key


class TestShipped:
    @pytest.mark.parametrize("name", qtool_targets.names())
    @pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
    @pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
    def test_every_graph_has_kernels(
        self, tiny_artifact: Artifacts, name: str, architecture: str, tied: bool
    ) -> None:
        provider = qtool_targets.load(name).execution.provider
        assert found_in(tiny_artifact(name, architecture, tied=tied), provider) == []

    @pytest.mark.parametrize("name", qtool_targets.names())
    def test_so_has_the_embedded_model(self, tmp_path: Path, name: str) -> None:
        artifact = qtool.build(target=name, output=tmp_path / "nano")
        assert found_in(artifact.path, qtool_targets.load(name).execution.provider) == []

    def test_so_has_an_int8_cache(self, tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
        require_int8_kv_cache()
        artifact = qtool.build(
            tiny_checkpoint().folder, target="x64-int4", kv_cache="int8", output=tmp_path / "artifact"
        )
        assert found_in(artifact.path, "cpu") == []
        assert "GroupQueryAttention" in artifact.manifest.operators[1].operators
        refused = found_in(artifact.path, "directml")
        assert any("T_CACHE is int8; valid: float16, float32" in line for line in refused)

    def test_a_graph_for_the_cpu_is_not_one_for_directml(self, tiny_artifact: Artifacts) -> None:
        """What the shipped graphs must not have, all of it at once."""
        lines = "\n".join(found_in(tiny_artifact("x64-int4", "qwen2"), "directml"))
        assert "model.layers.0.attention: do_rotary is 1; valid: 0" in lines
        assert "model.layers.0.self_attn.q_proj: it takes no bias" in lines
        assert "embed_tokens: there is none for this operator" in lines
        lines = "\n".join(found_in(tiny_artifact("x64-int8", "qwen3"), "directml"))
        assert "model.layers.1.mlp.up_proj: it needs zero_points" in lines
        assert "q_norm.split: version 23 (opset 23) is not among 14, 19, 21" in lines
        lines = "\n".join(found_in(tiny_artifact("x64-int8", "qwen3"), "cuda"))
        assert "embed_tokens: it needs zero_points" in lines
        assert "attention: T is float32; valid: float16" in lines


def one_node(
    op_type: str,
    *inputs: tuple[ir.DataType, list[int | str]] | np.ndarray | None,
    opset: int = 18,
    **attributes: Any,
) -> ir.Graph:
    """A graph of one operator; arrays become constants, pairs of type and shape become inputs."""
    builder = GraphBuilder("one", FLOAT)
    values = [
        None
        if given is None
        else builder.constant(f"c{index}", given, ir.DataType.from_numpy(given.dtype))
        if isinstance(given, np.ndarray)
        else builder.input(f"x{index}", *given)
        for index, given in enumerate(inputs)
    ]
    domain = attributes.pop("domain", "")
    builder.op("node", op_type, values, domain=domain, **attributes)
    builder.graph.opset_imports[""] = opset
    return builder.graph


def only_problem(graph: ir.Graph, provider: str) -> str | None:
    found = [problem for _, problem in problems(graph, kernels_of(provider))]
    assert len(found) <= 1
    return found[0] if found else None


class TestRules:
    def test_an_operator_that_nobody_knows(self) -> None:
        graph = one_node("GridSample", (FLOAT, ["a"]))
        assert only_problem(graph, "cpu") == "the operator is not among those that qtool knows"

    def test_an_operator_without_a_kernel(self) -> None:
        graph = one_node("FusedMatMul", (FLOAT, ["a", 4]), (FLOAT, [4, 4]), domain=MICROSOFT)
        assert only_problem(graph, "cuda") is None
        assert only_problem(graph, "webgpu") == "there is none for this operator"

    def test_indices_may_be_computed_beside_the_provider(self) -> None:
        """WebGPU has no 64-bit integers; on floats, the same operator needs a kernel of the right version."""
        indices = one_node("ReduceSum", (ir.DataType.INT64, ["a"]), np.array([0]))
        assert only_problem(indices, "webgpu") is None
        assert only_problem(one_node("Cast", (HALF, ["a"]), to=1), "webgpu") is None
        newer = one_node("Cast", (HALF, ["a"]), to=1, opset=21)
        assert only_problem(newer, "webgpu") == "version 21 (opset 21) is not among 13, 19"

    def test_a_shape_is_an_index_whatever_it_is_of(self) -> None:
        assert only_problem(one_node("Shape", (HALF, ["a"]), opset=23), "directml") is None
        assert (
            only_problem(one_node("Reshape", (HALF, ["a"]), np.array([-1]), opset=23), "directml") is not None
        )

    def test_types_flow_through_casts_and_constants(self) -> None:
        builder = GraphBuilder("flow", FLOAT)
        x = builder.input("x", HALF, ["a"])
        wide = builder.op("wide", "Cast", [x], to=int(FLOAT))
        builder.op("scaled", "Mul", [wide, builder.constant("c", 2.0, FLOAT)])
        builder.op("whole", "Sqrt", [builder.op("index", "Cast", [wide], to=int(ir.DataType.INT64))])
        found = [(node.name, problem) for node, problem in problems(builder.graph, kernels_of("cpu"))]
        assert found == []  # of integers alone: left to the processor
        builder.op("mixed", "MatMul", [builder.op("byte", "Cast", [wide], to=int(ir.DataType.UINT8)), x])
        found = [(node.name, problem) for node, problem in problems(builder.graph, kernels_of("cpu"))]
        assert found == [("mixed", "T is uint8; valid: float16, float32")]

    @pytest.mark.parametrize(("columns", "problem"), [(64, None), (96, "odd number of 4-bit zero points")])
    def test_rows_of_zero_points_that_end_within_a_byte(self, columns: int, problem: str | None) -> None:
        groups = columns // 32
        graph = one_node(
            "MatMulNBits",
            (FLOAT, ["a", columns]),
            np.zeros((8, groups, 16), np.uint8),
            np.zeros((8, groups), np.float32),
            np.zeros((8, -(-groups // 2)), np.uint8),
            domain=MICROSOFT,
            K=columns,
            N=8,
            bits=4,
            block_size=32,
        )
        assert only_problem(graph, "cuda") is None
        found = only_problem(graph, "directml")
        assert found == (problem and f"its rows have an {problem}")
        table = one_node(
            "GatherBlockQuantized",
            np.zeros((8, columns // 2), np.uint8),
            (ir.DataType.INT64, ["b", "s"]),
            np.zeros((8, groups), np.float32),
            np.zeros((8, -(-groups // 2)), np.uint8),
            domain=MICROSOFT,
            bits=4,
            block_size=32,
            quantize_axis=1,
        )
        assert only_problem(table, "cpu") is None
        found = only_problem(table, "cuda")
        assert found == (problem and f"its rows have an {problem}")


def own(name: str, **tables: dict[str, Any]) -> Target:
    target = qtool_targets.load(name)
    changes = {key: replace(getattr(target, key), **values) for key, values in tables.items()}
    return replace(target, name="own", **changes)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (
            own("cuda-int4", precision={"activations": "float32", "kv_cache": "float32"}),
            r"model\.layers\.0\.attention \(GroupQueryAttention\): T is float32; valid: float16",
        ),
        (
            own("web-int4", weights={"bits": 32}),
            r"provider webgpu has no kernel for the node .*q_proj \(FusedMatMul\): there is none",
        ),
    ],
    ids=["float32 on CUDA", "floats on WebGPU"],
)
def test_a_target_of_ones_own_is_refused_with_the_node(
    tmp_path: Path, tiny_checkpoint: Checkpoints, target: Target, reason: str
) -> None:
    with pytest.raises(TargetError, match=reason) as caught:
        qtool.build(tiny_checkpoint().folder, target=target, output=tmp_path / "out")
    assert caught.value.exit_code == 5
    assert "[precision]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_it_is_refused_before_anything_is_calibrated(tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
    target = own("cuda-int4", precision={"activations": "float32", "kv_cache": "float32"})
    stages: list[str] = []
    with pytest.raises(TargetError, match="provider cuda has no kernel"):
        qtool.build(
            tiny_checkpoint().folder,
            target=target,
            output=tmp_path / "out",
            recipe="balanced",
            progress=lambda stage, done, total: stages.append(stage),
        )
    assert stages == []
