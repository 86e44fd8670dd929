"""The recipes `olive` and `olive-mixed` with Olive itself; they need the extra `olive`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from qtool.checkpoint import Checkpoint, open_checkpoint
from qtool.checkpoint.quantized_weights import QuantizedWeight
from qtool.errors import QtoolError
from qtool.evaluate.weights import artifact_weights
from qtool.jobs import plan_jobs
from qtool.olive.quantize import quantize_with_olive
from qtool.pipeline import run_jobs
from qtool.quantize.recipes import RECIPES
from qtool_targets import load
from support.fixtures import Checkpoints
from support.tiny import write_tiny_checkpoint


def is_installed() -> bool:
    try:
        return bool(version("olive-ai"))
    except PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not is_installed(), reason="needs the extra 'olive'")

GPTQ = RECIPES["olive"].olive_passes


def windows(checkpoint: Checkpoint) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, (4, 32))


def meaning(tensors: dict[str, np.ndarray[Any, Any]], module: str, group_size: int) -> np.ndarray[Any, Any]:
    """Returns what the 4-bit integers in an Olive checkpoint stand for, value by value."""
    packed, scales = tensors[f"{module}.qweight"], tensors[f"{module}.scales"]
    zeros = tensors[f"{module}.qzeros"]
    values = np.empty((len(packed), packed.shape[1] * 2), np.float32)
    for row, column in np.ndindex(*values.shape):
        group = column // group_size
        q = int(packed[row, column // 2]) >> 4 * (column % 2) & 15
        zero = int(zeros[row, group // 2]) >> 4 * (group % 2) & 15
        values[row, column] = np.float32(q - zero) * np.float32(scales[row, group])
    return values


def test_what_olive_writes_is_taken_over_bit_for_bit(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = open_checkpoint(str(tiny_checkpoint("qwen2", tied=False).folder))
    target = load("x64-int4")
    found = quantize_with_olive(source, target, windows(source), GPTQ, folder=tmp_path, threads=1)
    tensors = load_file(tmp_path / "output" / "model" / "model.safetensors")
    for name, weight in found.weights.items():
        if name.endswith("_proj.weight"):
            assert isinstance(weight, QuantizedWeight)
            expected = meaning(tensors, name.removesuffix(".weight"), target.weights.group_size)
            np.testing.assert_array_equal(weight.read_all(), expected)
        else:
            np.testing.assert_array_equal(weight.read_all(), source.weights[name].read_all())


def test_a_build_with_mixed_precision(tmp_path: Path) -> None:
    """Eight layers: one at each end, and every third between them, have matrices of 8 bits."""
    tiny = write_tiny_checkpoint(tmp_path / "tiny", architecture="qwen3", num_hidden_layers=8)
    (job,) = plan_jobs(tiny.folder, ["x64-int4"], recipe="olive-mixed", output=tmp_path / "out", threads=1)
    (artifact,) = run_jobs([job], threads=1)
    weights = artifact_weights(artifact.path, artifact.manifest)
    high = {name for name, weight in weights.items() if weight.stored_type == "int8"}
    modules = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")
    assert high == {f"model.layers.{index}.{module}.weight" for index in (0, 3, 6, 7) for module in modules}
    assert job.plan.device.weights == pytest.approx(artifact.manifest.memory.weights, rel=0.02)
    document = artifact.manifest
    algorithms = {(group.group, group.bits): group.algorithm for group in document.quantization}
    layers = {(role, bits): "olive" for role in ("attention", "mlp") for bits in (4, 8)}
    assert algorithms == layers | {("embedding", 4): "rtn"}
    packages = ("olive-ai", "torch", "transformers")
    assert {name: document.tools[name] for name in packages} == {name: version(name) for name in packages}
    assert document.calibration is not None and document.calibration.tokens >= 2048
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny"]


def test_a_failure_of_olive_is_told(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = open_checkpoint(str(tiny_checkpoint("qwen2").folder))
    impossible = np.full((4, 32), source.config.vocab_size + 7)
    with pytest.raises(QtoolError, match="Olive failed") as caught:
        quantize_with_olive(source, load("x64-int4"), impossible, GPTQ, folder=tmp_path, threads=1)
    assert "--recipe balanced" in caught.value.hint
