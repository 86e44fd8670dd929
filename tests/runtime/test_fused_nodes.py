"""Which nodes are fused for the kernel pack, and which stay as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool_runtime.fused_nodes import FUSED, MICROSOFT, PRODUCT, fuse
from qtool_runtime.model_file import ModelFile, Node

PACK = "qtool.kernels"
SIZES = {"K": 64, "bits": 4, "block_size": 32}


def product(name: str, source: str = "normal", **changes: Any) -> Node:
    inputs = (source, f"{name}.q", f"{name}.scale", f"{name}.zero", "", f"{name}.bias")
    return Node(PACK, PRODUCT, inputs, (name,), SIZES | {"N": 96} | changes)


def skip_norm(output: str = "normal") -> Node:
    inputs, outputs = ("x", "residual", "weight"), (output, "", "", "sum")
    return Node(MICROSOFT, "SkipSimplifiedLayerNormalization", inputs, outputs, {"epsilon": 1e-6})


def norm(**changes: Any) -> Node:
    attributes = {"axis": -1, "epsilon": 1e-6} | changes
    return Node("", "RMSNormalization", ("x", "weight"), ("normal",), attributes)


def silu(alpha: float = 1.0) -> Node:
    return Node(MICROSOFT, "QuickGelu", ("gate",), ("silu",), {"alpha": alpha})


def times(*inputs: str) -> Node:
    return Node("", "Mul", inputs or ("silu", "up"), ("y",))


def user(*names: str) -> Node:
    return Node("", "Identity", names, ("used",))


GATE = [product("gate"), product("up"), silu(), times()]
WEIGHTS = ("{0}.q", "{0}.scale", "{0}.zero", "{0}.bias")


def weights(*names: str) -> tuple[str, ...]:
    return tuple(each.format(name) for name in names for each in WEIGHTS)


def test_query_key_and_value_with_their_normalization() -> None:
    nodes = [skip_norm(), product("q", N=128), product("k", bits=8), product("v"), user("q", "k", "v", "sum")]
    fused, rest = fuse(nodes, ["used"], PACK)
    assert rest is nodes[-1]
    assert (fused.domain, fused.operator) == (PACK, FUSED)
    assert fused.inputs == ("x", "residual", "weight", *weights("q", "k", "v"))
    assert fused.outputs == ("sum", "q", "k", "v")
    assert fused.attributes == {
        "K": 64,
        "epsilon": 1e-6,
        **{"N1": 128, "bits1": 4, "block_size1": 32},
        **{"N2": 96, "bits2": 8, "block_size2": 32},
        **{"N3": 96, "bits3": 4, "block_size3": 32},
    }


@pytest.mark.parametrize("order", [("silu", "up"), ("up", "silu")])
@pytest.mark.parametrize("first", [0, 1])
def test_a_gate_with_its_normalization(order: tuple[str, str], first: int) -> None:
    products = [GATE[first], GATE[1 - first]]
    (fused,) = fuse([skip_norm(), *products, silu(), times(*order)], ["y"], PACK)
    assert fused.inputs == ("x", "residual", "weight", *weights("gate", "up"))
    assert fused.outputs == ("", "y")  # nobody uses the sum
    assert fused.attributes["gated"] == 1


def test_one_product_behind_a_normalization() -> None:
    (fused,) = fuse([norm(), product("logits")], ["logits"], PACK)
    assert fused.inputs == ("x", "", "weight", *weights("logits"))
    assert fused.outputs == ("", "logits")


def test_products_of_an_input_that_something_else_makes() -> None:
    nodes = [Node("", "Relu", ("x",), ("normal",)), product("q"), product("k")]
    kept, fused = fuse(nodes, ["q", "k"], PACK)
    assert kept is nodes[0]
    assert fused.inputs == ("normal", "", "", *weights("q", "k"))
    assert fused.outputs == ("", "q", "k")
    assert "epsilon" not in fused.attributes


@pytest.mark.parametrize(
    "hidden", ["normal", "gate", "silu", "up"], ids=lambda name: f"{name} is used elsewhere"
)
@pytest.mark.parametrize("as_output", [False, True])
def test_what_is_used_elsewhere_is_not_hidden(hidden: str, as_output: bool) -> None:
    nodes = [skip_norm(), *GATE, *([] if as_output else [user(hidden)])]
    fused = fuse(nodes, ["y", "used", *([hidden] if as_output else [])], PACK)
    assert hidden in {name for node in fused for name in node.outputs}
    assert "y" in {name for node in fused for name in node.outputs}


@pytest.mark.parametrize(
    ("nodes", "operators"),
    [
        pytest.param([product("o")], [PRODUCT], id="one product"),
        pytest.param([product(name) for name in "abcd"], [PRODUCT] * 4, id="too many"),
        pytest.param([product("a"), product("b", K=32)], [PRODUCT] * 2, id="other depth"),
        pytest.param([product("a"), product("b", N=0)], [PRODUCT] * 2, id="size of nothing"),
        pytest.param([product("a"), product("b", K=0.5)], [PRODUCT] * 2, id="size of another type"),
        pytest.param(
            [Node("", "Relu", ("x",), ("b.q",)), product("a"), product("b")],
            ["Relu", PRODUCT, PRODUCT],
            id="computed weights",
        ),
        pytest.param(
            [product("a"), Node(PACK, PRODUCT, ("normal", "q", "s", "", "order"), ("b",), SIZES | {"N": 8})],
            [PRODUCT] * 2,
            id="weights in another order",
        ),
        pytest.param([*GATE[:2], silu(1.702), times()], [FUSED, "QuickGelu", "Mul"], id="another activation"),
        pytest.param(
            [product("gate"), product("up", N=1), *GATE[2:]], [FUSED, "QuickGelu", "Mul"], id="other sizes"
        ),
        pytest.param([*GATE[:3], times("silu", "silu")], [FUSED, "QuickGelu", "Mul"], id="another product"),
        pytest.param([norm(axis=0), product("a")], ["RMSNormalization", PRODUCT], id="another axis"),
        pytest.param([norm(epsilon=1), product("a")], ["RMSNormalization", PRODUCT], id="another type"),
        pytest.param(
            [Node(MICROSOFT, "If", ("x",), ("z",), has_graph=True), norm(), *GATE],
            ["If", "RMSNormalization", PRODUCT, PRODUCT, "QuickGelu", "Mul"],
            id="a graph in a node",
        ),
    ],
)
def test_other_nodes_stay(nodes: list[Node], operators: list[str]) -> None:
    assert [node.operator for node in fuse(nodes, ["y"], PACK)] == operators


@given(
    nodes=st.lists(
        st.builds(
            Node,
            st.sampled_from([PACK, MICROSOFT, ""]),
            st.sampled_from(
                [PRODUCT, "QuickGelu", "Mul", "RMSNormalization", "SkipSimplifiedLayerNormalization"]
            ),
            st.lists(st.sampled_from(["", "a", "b", "c", "w"]), max_size=6).map(tuple),
            st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=4).map(tuple),
            st.dictionaries(
                st.sampled_from(["K", "N", "bits", "block_size", "alpha", "epsilon", "axis"]),
                st.sampled_from([-1, 0, 1, 32, 1.0]),
            ),
        ),
        max_size=8,
    )
)
def test_any_nodes_at_all(nodes: list[Node]) -> None:
    for node in fuse(nodes, ["a"], PACK):
        assert node.serialize()


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_a_real_artifact(tiny_artifact: Callable[..., Path], architecture: str) -> None:
    model = ModelFile.read((tiny_artifact("x64-int4", architecture) / "model.onnx").read_bytes())
    nodes = [node.moved(PACK) if node.operator == PRODUCT else node for node in model.nodes]
    fused = fuse(nodes, model.outputs, PACK)
    layers = sum(node.operator == "GroupQueryAttention" for node in nodes)
    count = Counter(node.operator for node in fused)
    assert count[FUSED] == 2 * layers + 1  # and the logits
    assert count[PRODUCT] == 2 * layers
    assert not count["QuickGelu"] + count["SkipSimplifiedLayerNormalization"]
    makers = {name for node in fused for name in node.outputs}
    assert model.outputs <= makers
