"""Where tensors lie in the data file."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qtool
import qtool_targets
from qtool.artifact.layout import plan_layout
from qtool.checkpoint.weight import Weight
from qtool.models.graph import GraphBuilder
from support.fixtures import Artifacts
from support.sparse import write_sparse_checkpoint

import onnx_ir as ir  # isort: skip

MEBIBYTE = 1 << 20


def ranges(folder: Path) -> list[tuple[int, int]]:
    """Offset and length of every distinct tensor in the data file, in order."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    found = set()
    for tensor in graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            found.add((int(entries["offset"]), int(entries["length"])))
    return sorted(found)


def check(tensors: list[tuple[int, int]], size: int) -> None:
    for offset, length in tensors:
        assert offset % (16384 if length >= MEBIBYTE else 64) == 0, f"{length} bytes at {offset}"
    for (start, length), (following, _) in pairwise(tensors):
        gap = following - (start + length)
        assert 0 <= gap < 16384
    assert tensors[0][0] == 0
    assert sum(tensors[-1]) == size


@pytest.mark.parametrize("target", qtool_targets.names())
def test_tensors_of_an_artifact_are_aligned_apart_and_fill_the_file(
    tiny_artifact: Artifacts, target: str
) -> None:
    folder = tiny_artifact(target, "qwen3", tied=False)
    check(ranges(folder), (folder / "model.onnx.data").stat().st_size)


@pytest.mark.parametrize("target", ["x64-fp32", "android-arm64-int4"])
def test_large_tensors_start_on_a_page(tmp_path: Path, target: str) -> None:
    source = write_sparse_checkpoint(tmp_path / "source", vocab_size=40_000, intermediate_size=5024)
    folder = qtool.build(source, target=target, output=tmp_path / "out").path
    tensors = ranges(folder)
    assert any(length >= MEBIBYTE for _, length in tensors)
    check(tensors, (folder / "model.onnx.data").stat().st_size)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=12))
def test_any_shapes_are_aligned_and_apart(shapes: list[tuple[int, int]]) -> None:
    builder = GraphBuilder("shapes", ir.DataType.FLOAT)
    for index, shape in enumerate(shapes):
        builder.weight(Weight(f"w{index}", shape, "F32", lambda start, stop: np.zeros(0, np.float32)))
    layout = plan_layout(ir.Model(builder.graph, ir_version=10))
    tensors = sorted(
        (offset, part.nbytes)
        for placement in layout.placements.values()
        for offset, part in zip(placement.offsets, placement.storage.parts, strict=True)
    )
    assert len(tensors) == len(shapes)
    check(tensors, layout.size)


def test_small_constants_are_inside_the_graph_file(tiny_artifact: Artifacts) -> None:
    """The data file holds what is large; a shape or an axis stays where a reader sees it."""
    folder = tiny_artifact("web-int4", "qwen3")
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    inside = {tensor.name for tensor in graph.initializer if not tensor.external_data}
    assert {"num_logits", "logits_rows.end", "positions.one"} <= inside
    manifest = json.loads((folder / "manifest.json").read_text())
    sizes = {entry["path"]: entry["size"] for entry in manifest["files"]}
    assert sizes["model.onnx"] < 50_000
