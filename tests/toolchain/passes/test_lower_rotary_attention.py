"""Rotation outside of the attention operator: the values stay, also for batches and behind a past."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import qtool_targets
from qtool.checkpoint import open_checkpoint
from qtool.exporters import export
from qtool.passes import capabilities_for
from qtool.passes.lower_rotary_attention import LowerRotaryAttention
from support.fixtures import Checkpoints
from support.raw_session import distance
from support.tolerances import TOLERANCES

from .graphs import operators

TARGET = qtool_targets.load("x64-fp32")
CAPABLE = capabilities_for(TARGET)
INCAPABLE = replace(CAPABLE, supports_rotary_attention=False)


@pytest.fixture(params=["qwen2", "qwen3"])
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def graphs(tiny_checkpoint: Checkpoints, architecture: str) -> tuple[ir.Model, ir.Model]:
    """As exported, and lowered."""
    checkpoint = open_checkpoint(str(tiny_checkpoint(architecture).folder))
    whole, lowered = (export(checkpoint, TARGET, 64, "native") for _ in range(2))
    assert LowerRotaryAttention(INCAPABLE)(lowered).modified
    return whole, lowered


def logits(model: ir.Model, path: Path, ids: np.ndarray, lengths: list[list[int]]) -> np.ndarray:
    """Logits of all tokens of the last run but padding; run i extends row j of a batch to lengths[i][j]."""
    ir.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    past = {i.name: i for i in session.get_inputs() if i.name.startswith("past")}
    cache = {n: np.zeros((len(ids), i.shape[1], 64, i.shape[3]), np.float32) for n, i in past.items()}
    start, found = 0, np.empty(0)
    for ends in lengths:
        stop = max(ends)
        mask = np.arange(stop) < np.array(ends)[:, None]
        feeds = {"input_ids": ids[:, start:stop], "attention_mask": mask.astype(np.int64), **cache}
        feeds["num_logits"] = np.array([stop - start])
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(None, feeds), strict=True))
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in cache}
        found, start = outputs["logits"][mask[:, start:]], stop
    return found


@pytest.mark.parametrize(
    "lengths",
    [[[9]], [[9], [10], [11]], [[6], [11]], [[9, 5]], [[9, 9], [10, 10]]],
    ids=["prompt", "decode", "several behind a past", "padded batch", "batch"],
)
def test_values_stay(tmp_path: Path, graphs: tuple[ir.Model, ir.Model], lengths: list[list[int]]) -> None:
    ids = np.random.default_rng(3).integers(0, 300, (len(lengths[0]), 12))
    expected, found = (
        logits(model, tmp_path / f"{index}.onnx", ids, lengths) for index, model in enumerate(graphs)
    )
    assert distance(found, expected) < TOLERANCES["float32"]["reference"]
    assert np.ptp(expected) > 5


def test_every_query_and_key_is_rotated_once(graphs: tuple[ir.Model, ir.Model]) -> None:
    _, lowered = graphs
    assert operators(lowered)["RotaryEmbedding"] == 2 * operators(lowered)["GroupQueryAttention"]
    assert operators(lowered)["Range"] == 1  # the positions are the same for all layers
    for node in lowered.graph:
        if node.op_type == "GroupQueryAttention":
            assert node.attributes["do_rotary"].as_int() == 0
            assert len(node.inputs) == 7
    assert not LowerRotaryAttention(INCAPABLE)(lowered).modified


def test_a_provider_that_rotates_is_left_to_it(tiny_checkpoint: Checkpoints) -> None:
    model = export(open_checkpoint(str(tiny_checkpoint().folder)), TARGET, 64, "native")
    assert not LowerRotaryAttention(CAPABLE)(model).modified
