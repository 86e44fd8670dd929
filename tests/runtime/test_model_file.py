"""Nodes of a model file are replaced, and nothing else changes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qtool_runtime.errors import ArtifactError
from qtool_runtime.model_file import ModelFile, Node

OPERATORS = ("MatMulNBits", "GroupQueryAttention", "QuickGelu")


def model_of(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])
    graph = helper.make_graph(nodes, "graph", [value], [value])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets)


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    nodes = []
    for number in range(draw(st.integers(0, 6))):
        values = st.integers(-(2**63), 2**63 - 1) | st.floats(width=32, allow_nan=False)
        attributes = draw(st.dictionaries(st.text("abc", min_size=1), values, max_size=3))
        operator = draw(st.sampled_from(OPERATORS))
        domain = draw(st.sampled_from(["", "com.microsoft"]))
        inputs = draw(st.lists(st.sampled_from(["x", "", "weight"]), max_size=4))
        outputs = [f"é{number}"]
        nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
    return model_of(nodes)


@settings(deadline=None)
@given(model=models())
def test_nodes_are_read(model: onnx.ModelProto) -> None:
    read = ModelFile.read(model.SerializeToString())
    assert read.outputs == {"x"}
    for found, node in zip(read.nodes, model.graph.node, strict=True):
        assert (found.domain, found.operator) == (node.domain, node.op_type)
        assert found.inputs == tuple(node.input)
        assert found.outputs == tuple(node.output)
        assert found.attributes == {each.name: helper.get_attribute_value(each) for each in node.attribute}
        assert not found.has_graph


@settings(deadline=None)
@given(model=models(), operator=st.sampled_from(OPERATORS))
def test_only_the_domain_of_moved_nodes_changes(model: onnx.ModelProto, operator: str) -> None:
    read = ModelFile.read(model.SerializeToString())
    nodes = [node.moved("new.domain") if node.operator == operator else node for node in read.nodes]
    data = read.write(nodes, "new.domain")
    for node in model.graph.node:
        if node.op_type == operator:
            node.domain = "new.domain"
    model.opset_import.append(helper.make_opsetid("new.domain", 1))
    assert onnx.load_from_string(data) == model


def test_a_node_that_was_made_here() -> None:
    attributes = {"K": 896, "epsilon": 0.5, "zero": 0}
    node = Node("new.domain", "Fused", ("x", "", "weight"), ("", "y"), attributes)
    model = ModelFile.read(model_of([]).SerializeToString())
    (written,) = onnx.load_from_string(model.write([node], "new.domain")).graph.node
    assert written == helper.make_node("Fused", node.inputs, node.outputs, domain="new.domain", **attributes)


def test_graphs_within_nodes_are_seen() -> None:
    branch = helper.make_graph([], "branch", [], [])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    assert ModelFile.read(model_of([node]).SerializeToString()).nodes[0].has_graph


def test_a_real_artifact_is_rewritten(artifact: Path) -> None:
    path = artifact / "model.onnx"
    original = onnx.load(path, load_external_data=False)
    read = ModelFile.read(path.read_bytes())
    nodes = [node.moved("new") if node.domain == "com.microsoft" else node for node in read.nodes]
    written = onnx.load_from_string(read.write(nodes, "new"))
    assert {node.domain for node in written.graph.node} == {"", "new"}
    assert written.graph.initializer == original.graph.initializer
    assert len(written.graph.node) == len(original.graph.node)


@given(junk=st.binary(max_size=200))
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"fields of onnx\.proto"):
        ModelFile.read(b"\x00" + junk + b"\x3a\x7f")


@settings(deadline=None)
@given(model=models(), data=st.data())
def test_a_damaged_file_never_ends_in_another_error(model: onnx.ModelProto, data: st.DataObject) -> None:
    whole = bytearray(model.SerializeToString())
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(whole)))
    for damaged in (bytes(whole), bytes(whole[:end])):
        with suppress(ArtifactError):
            ModelFile.read(damaged)


@pytest.mark.parametrize(
    "junk", [b"", b"\x3a\xff\xff\xff\xff\x0f", b"\x3a", b"\x80" * 11, b"\x3b\x00", b"\x3a\x00\x3a\x00"]
)
def test_what_is_no_model_is_refused(junk: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"fields of onnx\.proto"):
        ModelFile.read(junk)
