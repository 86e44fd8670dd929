"""An artifact's weights, read back, and their error against the source."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qtool_targets
from qtool.checkpoint import open_checkpoint
from qtool.checkpoint.weight import Weight
from qtool.errors import ArtifactError, SourceError
from qtool.evaluate.weight_error import weight_errors
from qtool.evaluate.weights import artifact_weights
from qtool.quantize.schemes import role_of
from qtool_runtime import manifest
from support.dequantized import dequantized
from support.fixtures import Artifacts, Checkpoints


@pytest.mark.parametrize("target", ["x64-int4", "x64-int8", "web-int4", "x64-fp32", "cuda-fp16"])
@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("qwen3", False)])
def test_what_is_read_is_what_the_integers_stand_for(
    target: str, architecture: str, tied: bool, tiny_artifact: Artifacts, tiny_checkpoint: Checkpoints
) -> None:
    folder = tiny_artifact(target, architecture, tied=tied)
    tensors = tiny_checkpoint(architecture, tied=tied).tensors
    expected = dequantized(tensors, qtool_targets.load(target))
    weights = artifact_weights(folder, manifest.read(folder))
    matrices = {name for name in tensors if role_of(name)}
    assert matrices <= weights.keys() <= matrices | {"lm_head.weight"}
    for name, weight in weights.items():
        assert weight.read_all() == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name
        assert (weight.read(3, 7) == weight.read_all()[3:7]).all()


def test_errors_are_relative_norms_by_layer_and_kind(
    tiny_artifact: Artifacts, tiny_checkpoint: Checkpoints
) -> None:
    folder, source = tiny_artifact("x64-int4", "qwen3"), tiny_checkpoint("qwen3")
    checkpoint = open_checkpoint(str(source.folder))
    errors = weight_errors(checkpoint.weights, artifact_weights(folder, manifest.read(folder)))
    places = [("embedding", None), ("lm_head", None)]
    places += [(group, layer) for layer in (0, 1) for group in ("attention", "mlp")]
    assert [(error.group, error.layer) for error in errors] == places
    stored = dequantized(source.tensors, qtool_targets.load("x64-int4"))
    names = [name for name in source.tensors if name.startswith("model.layers.1.mlp")]
    lost = sum(float(((source.tensors[name] - stored[name]) ** 2).sum()) for name in names)
    size = sum(float((source.tensors[name] ** 2).sum()) for name in names)
    assert errors[-1].relative == pytest.approx((lost / size) ** 0.5, rel=1e-4)
    assert 0.03 < errors[-1].relative < 0.15  # what four bits can do


def test_float32_loses_nothing(tiny_artifact: Artifacts, tiny_checkpoint: Checkpoints) -> None:
    folder = tiny_artifact("x64-fp32", "qwen2")
    checkpoint = open_checkpoint(str(tiny_checkpoint("qwen2").folder))
    errors = weight_errors(checkpoint.weights, artifact_weights(folder, manifest.read(folder)))
    assert {error.relative for error in errors} == {0.0}


def test_another_model_is_refused(tiny_artifact: Artifacts, tiny_checkpoint: Checkpoints) -> None:
    folder = tiny_artifact("x64-int4", "qwen3")
    source = open_checkpoint(str(tiny_checkpoint("qwen2").folder)).weights
    with pytest.raises(SourceError, match=r"the artifact has the matrix .* of shape"):
        weight_errors(source, artifact_weights(folder, manifest.read(folder)))


def test_a_zero_matrix_has_no_relative_error() -> None:
    weight = Weight(
        "lm_head.weight", (3, 4), "F32", lambda start, stop: np.zeros((stop - start, 4), np.float32)
    )
    assert [error.relative for error in weight_errors({weight.name: weight}, {weight.name: weight})] == [0.0]
    ones = replace(weight, read=lambda start, stop: np.ones((stop - start, 4), np.float32))
    assert [error.relative for error in weight_errors({weight.name: weight}, {weight.name: ones})] == [1.0]


def test_a_truncated_data_file_is_refused(tiny_artifact: Artifacts, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifact("x64-int4"), folder)
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="outside the artifact's data"):
        artifact_weights(folder, manifest.read(folder))
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match="is not a graph"):
        artifact_weights(folder, manifest.read(folder))
