"""Drives an artifact's graph through onnxruntime itself, with nothing of ours in between."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime


class RawSession:
    """One sequence over one artifact: past and present share a buffer, as on a device.

    Args:
        folder: the artifact.
        capacity: tokens that the buffers hold.
    """

    def __init__(self, folder: Path, capacity: int = 64) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = (
            3  # the graph declares one row of logits and returns what it is asked for
        )
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        cache = json.loads((folder / "manifest.json").read_text())["kv_cache"]
        shape = (1, cache["num_key_value_heads"], capacity, cache["head_dim"])
        self._cache = {
            f"{layer}.{part}": onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, cache["dtype"]))
            for layer in range(cache["layers"])
            for part in ("key", "value")
        }
        self.length = 0

    def forward(self, tokens: Sequence[int], rows: int | None = None) -> npt.NDArray[Any]:
        """Reads tokens; returns logits (rows, vocab_size), or one row from the graph's default if None."""
        self.length += len(tokens)
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.array([tokens], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, self.length), np.int64))
        if rows is not None:
            count = onnxruntime.OrtValue.ortvalue_from_numpy(np.array([rows], np.int64))
            binding.bind_ortvalue_input("num_logits", count)
        binding.bind_output("logits", "cpu")
        for name, buffer in self._cache.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
            binding.bind_ortvalue_output(f"present.{name}", buffer)
        self._session.run_with_iobinding(binding)
        return np.array(binding.get_outputs()[0].numpy()[0])


def with_exact_activations(artifact: Path, folder: Path) -> Path:
    """Copies an artifact and switches the kernels' rounding of activations to int8 off; weights stay."""
    shutil.copytree(artifact, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    levels = [a for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"]
    assert {level.i for level in levels} == {4}
    for level in levels:
        level.i = 0
    onnx.save(model, folder / "model.onnx")
    return folder


def distance(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Returns the largest difference, relative to the largest expected magnitude."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, f"{found.shape} is not {expected.shape}"
    return float(np.abs(found - expected).max() / np.abs(expected).max())
