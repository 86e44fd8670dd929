"""Nodes of a model file are pointed to another implementation, and nothing else changes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qtool_runtime.errors import ArtifactError
from qtool_runtime.operator_domains import move_operators

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
        values = st.integers(-(2**63), 2**63 - 1) | st.floats(width=32)
        attributes = draw(st.dictionaries(st.text("abc", min_size=1), values, max_size=3))
        operator = draw(st.sampled_from(OPERATORS))
        domain = draw(st.sampled_from(["", "com.microsoft"]))
        inputs = draw(st.lists(st.sampled_from(["x", "", "weight"]), max_size=4))
        outputs = [f"é{number}"]
        nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
    return model_of(nodes)


@settings(deadline=None)
@given(model=models(), operator=st.sampled_from(OPERATORS))
def test_only_the_domain_of_the_chosen_nodes_changes(model: onnx.ModelProto, operator: str) -> None:
    seen = []

    def moves(domain: str, name: str, attributes: dict[str, int]) -> bool:
        seen.append(attributes)
        return domain == "com.microsoft" and name == operator

    data, count = move_operators(model.SerializeToString(), "new.domain", moves)

    integers = [
        {each.name: each.i for each in node.attribute if each.type == onnx.AttributeProto.INT}
        for node in model.graph.node
    ]
    assert [{**each} for each in seen] == integers
    chosen = [node for node in model.graph.node if (node.domain, node.op_type) == ("com.microsoft", operator)]
    for node in chosen:
        node.domain = "new.domain"
    model.opset_import.append(helper.make_opsetid("new.domain", 1))
    assert count == len(chosen)
    assert onnx.load_from_string(data) == model


def test_a_real_artifact_is_rewritten(artifact: Path) -> None:
    original = onnx.load(artifact / "model.onnx", load_external_data=False)
    count = sum(node.domain == "com.microsoft" for node in original.graph.node)
    data, moved = move_operators(
        (artifact / "model.onnx").read_bytes(), "new", lambda domain, *_: domain == "com.microsoft"
    )
    assert moved == count > 0
    assert {node.domain for node in onnx.load_from_string(data).graph.node} == {"", "new"}


@given(junk=st.binary(max_size=200))
def test_junk_is_refused_or_left_as_it_is(junk: bytes) -> None:
    try:
        data, moved = move_operators(junk, "new", lambda *_: True)
    except ArtifactError as error:
        assert "not an ONNX model" in error.message
    else:
        assert moved or data.startswith(junk)


@settings(deadline=None)
@given(model=models(), data=st.data())
def test_a_cut_file_never_ends_in_another_error(model: onnx.ModelProto, data: st.DataObject) -> None:
    whole = model.SerializeToString()
    end = data.draw(st.integers(0, len(whole)))
    with suppress(ArtifactError):
        move_operators(whole[:end], "new", lambda *_: True)


@pytest.mark.parametrize("junk", [b"\x3a\xff\xff\xff\xff\x0f", b"\x3a", b"\x80" * 11, b"\x3b\x00"])
def test_what_reaches_beyond_the_file_is_refused(junk: bytes) -> None:
    with pytest.raises(ArtifactError, match="not an ONNX model"):
        move_operators(junk, "new", lambda *_: True)
