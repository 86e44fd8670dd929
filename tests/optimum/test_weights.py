"""Weights reach the artifact as from the native exporter: the same bytes, once each, not through torch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

import qtool
import qtool_targets
from qtool.checkpoint import Weight, open_checkpoint
from qtool.evaluate.weights import artifact_weights
from qtool.exporters import optimum
from support.fixtures import Artifacts, Checkpoints
from support.quantized import Style, write_quantized_checkpoint

pytest.importorskip("optimum.exporters.onnx", reason="the exporter needs the extra 'optimum'")


def stored(folder: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Returns every tensor of the data file but rotary tables, by the layer that reads it."""
    found = {}
    graph = ir.load(folder / "model.onnx").graph
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and not name.startswith("rotary."):
            layer = re.sub(r"^/model/embed_tokens/Gather(?=\.|$)", "embed_tokens", name)
            found[layer] = tensor.numpy()
    return found


@pytest.mark.parametrize("target", ["x64-fp32", "x64-int4", "x64-int8", "cuda-fp16", "cuda-int4"])
def test_every_stored_tensor_is_the_native_exporters_bit_for_bit(
    target: str, model: tuple[str, bool], tiny_artifact: Artifacts, optimum_artifact: Artifacts
) -> None:
    native = stored(tiny_artifact(target, model[0], tied=model[1]))
    found = stored(optimum_artifact(target, model[0], tied=model[1]))
    assert sorted(found) == sorted(native)
    for name, values in native.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("target", ["x64-fp32", "x64-int4", "cuda-fp16"])
def test_a_tied_embedding_is_stored_once(target: str, optimum_artifact: Artifacts) -> None:
    graph = ir.load(optimum_artifact(target) / "model.onnx").graph
    tables = {}
    for node in graph:
        for value in node.inputs[:2]:
            tensor = value.const_value if value is not None else None
            if isinstance(tensor, ir.ExternalTensor) and tensor.shape[0] == 320:
                tables[node.op_type] = (tensor.offset, tensor.length)
    assert len(tables) == 2  # the lookup and the LM head
    assert len(set(tables.values())) == 1, tables


def test_no_weight_is_read_for_the_graph(tiny_checkpoint: Checkpoints) -> None:
    def read(start: int, stop: int) -> npt.NDArray[np.float32]:
        raise AssertionError("a weight was read")

    checkpoint = open_checkpoint(str(tiny_checkpoint("qwen3").folder))
    unreadable = {
        name: Weight(name, weight.shape, weight.stored_type, read)
        for name, weight in checkpoint.weights.items()
    }
    model = optimum.export(replace(checkpoint, weights=unreadable), qtool_targets.load("x64-int4"))
    assert set(model.graph.initializers) == set(unreadable)


def test_calibrated_integers_are_the_native_exporters(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Calibration runs qtool's own layers, so its integers do not depend on what writes the graph."""
    source = tiny_checkpoint("qwen3", tied=False).folder
    native, other = (
        qtool.build(
            source, target="x64-int4", recipe="balanced", exporter=exporter, output=tmp_path / exporter
        )
        for exporter in ("native", "optimum")
    )
    assert {group.algorithm for group in other.manifest.quantization} == {"gptq", "rtn"}
    assert other.manifest.quantization == native.manifest.quantization
    expected, found = stored(native.path), stored(other.path)
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        assert found[name].tobytes() == values.tobytes(), name


def test_quantized_sources_are_taken_over(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = write_quantized_checkpoint(
        tmp_path / "source", tiny_checkpoint("qwen2").folder, Style("awq", symmetric=False)
    )
    built = qtool.build(source.folder, target="x64-int4", exporter="optimum", output=tmp_path / "out")
    weights = artifact_weights(built.path, built.manifest)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        np.testing.assert_array_equal(weights[name].read_all(), source.tensors[name])
