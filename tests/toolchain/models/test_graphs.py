"""The form of the graphs: valid ONNX, only known operators, inputs and outputs as documented."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest

import qtool_targets
from qtool.passes import capabilities_for
from support.fixtures import Artifacts, Checkpoints

TARGETS = qtool_targets.names()
every_artifact = pytest.mark.parametrize("target", TARGETS)
every_architecture = pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
both_heads = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def graph_of(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "model.onnx", load_external_data=False).graph


def data_ranges(graph: onnx.GraphProto) -> dict[str, tuple[int, int]]:
    """Initializer -> (offset, length) in the data file."""
    ranges = {}
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] == "model.onnx.data"
            ranges[tensor.name] = (int(entries["offset"]), int(entries["length"]))
    return ranges


def described(value: onnx.ValueInfoProto) -> tuple[int, list[Any]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, [dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim]


@every_artifact
@every_architecture
@both_heads
def test_onnx_checker_accepts_the_model_with_its_data(
    tiny_artifact: Artifacts, target: str, architecture: str, tied: bool
) -> None:
    folder = tiny_artifact(target, architecture, tied=tied)
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)


@every_artifact
@every_architecture
def test_operators_are_standard_or_onnxruntimes_own(
    tiny_artifact: Artifacts, target: str, architecture: str
) -> None:
    folder = tiny_artifact(target, architecture)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    opset = capabilities_for(qtool_targets.load(target)).opset
    found = {(entry.domain, entry.version) for entry in model.opset_import}
    assert found == {("", opset), ("com.microsoft", 1)}
    assert {node.domain for node in model.graph.node} == {"", "com.microsoft"}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert "" not in {node.name for node in model.graph.node}


@every_artifact
@every_architecture
def test_inputs_and_outputs_are_as_documented(
    tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts, target: str, architecture: str
) -> None:
    config = tiny_checkpoint(architecture).config
    folder = tiny_artifact(target, architecture)
    graph = graph_of(folder)
    half = qtool_targets.load(target).precision.activations == "float16"
    number = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    heads, size = config["num_key_value_heads"], 32 if architecture == "qwen3" else 16
    expected = {
        "input_ids": (onnx.TensorProto.INT64, ["batch_size", "sequence_length"]),
        "attention_mask": (onnx.TensorProto.INT64, ["batch_size", "total_sequence_length"]),
        "num_logits": (onnx.TensorProto.INT64, [1]),
    }
    present: dict[str, Any] = {"logits": (number, ["batch_size", 1, config["vocab_size"]])}
    for layer in range(config["num_hidden_layers"]):
        for part in ("key", "value"):
            past = (number, ["batch_size", heads, "past_sequence_length", size])
            expected[f"past_key_values.{layer}.{part}"] = past
            present[f"present.{layer}.{part}"] = (
                number,
                ["batch_size", heads, "total_sequence_length", size],
            )
    assert {value.name: described(value) for value in graph.input} == expected
    assert {value.name: described(value) for value in graph.output} == present
    assert graph.output[0].name == "logits"
    # num_logits may be left out: an initializer of the same name is its default.
    (default,) = [tensor for tensor in graph.initializer if tensor.name == "num_logits"]
    assert onnx.numpy_helper.to_array(default).tolist() == [1]
    manifest = json.loads((folder / "manifest.json").read_text())["graph"]
    assert manifest["inputs"] == [value.name for value in graph.input]
    assert manifest["outputs"] == [value.name for value in graph.output]


@every_artifact
@every_architecture
@both_heads
def test_every_initializer_is_used_and_only_once_in_the_data_file(
    tiny_artifact: Artifacts, target: str, architecture: str, tied: bool
) -> None:
    graph = graph_of(tiny_artifact(target, architecture, tied=tied))
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used
    ranges = sorted(set(data_ranges(graph).values()))
    for (start, length), (following, _) in pairwise(ranges):
        assert start + length <= following


def embedding_and_head(graph: onnx.GraphProto) -> tuple[list[str], list[str]]:
    """Names of the stored tensors that the first lookup and the last product read."""
    stored = set(data_ranges(graph))
    (lookup,) = [node for node in graph.node if node.op_type in ("Gather", "GatherBlockQuantized")
                 and stored & set(node.input)]  # fmt: skip
    (product,) = [node for node in graph.node if "logits" in node.output]
    return [n for n in lookup.input if n in stored], [n for n in product.input if n in stored]


@every_artifact
@every_architecture
def test_a_tied_head_shares_the_embeddings_bytes_where_both_have_one_scheme(
    tiny_artifact: Artifacts, target: str, architecture: str
) -> None:
    weights = qtool_targets.load(target).weights
    graph = graph_of(tiny_artifact(target, architecture, tied=True))
    ranges = data_ranges(graph)
    embedding, head = ([ranges[name] for name in names] for names in embedding_and_head(graph))
    if (weights.embedding_bits or weights.bits) == (weights.lm_head_bits or weights.bits):
        assert embedding == head
    else:
        assert not set(embedding) & set(head)


@every_artifact
@every_architecture
def test_an_untied_head_has_bytes_of_its_own(
    tiny_artifact: Artifacts, target: str, architecture: str
) -> None:
    graph = graph_of(tiny_artifact(target, architecture, tied=False))
    ranges = data_ranges(graph)
    embedding, head = ({ranges[name] for name in names} for names in embedding_and_head(graph))
    assert embedding
    assert head
    assert not embedding & head


def test_shared_bytes_are_two_initializers_not_a_reshape(tiny_artifact: Artifacts) -> None:
    """onnxruntime would copy the embedding to fold a Reshape between its two uses."""
    graph = graph_of(tiny_artifact("x64-int4", "qwen2", tied=True))
    assert not [node for node in graph.node if node.op_type == "Reshape"]
