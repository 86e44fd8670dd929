"""Small graphs to try passes on, and onnxruntime to ask what they compute."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from qtool.checkpoint.weight import Weight
from qtool.models.graph import GraphBuilder


def weight(name: str, *shape: int, seed: int = 0, scale: float = 1.0) -> Weight:
    """Random values; every reading gives the same."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(scale)
    return Weight(name, shape, "F32", lambda start, stop: values[start:stop])


def finish(builder: GraphBuilder, output: ir.Value, *shape: int | str) -> ir.Model:
    builder.output(output, "y", builder.dtype, shape)
    return ir.Model(builder.graph, ir_version=10)


def operators(model: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph))


def run(model: ir.Model, folder: Path, **inputs: np.ndarray) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    ir.save(model, path, external_data="data")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]
