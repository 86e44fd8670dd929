"""The exported graphs compute what the papers say: compared in values with numpy, target by target.

The ladder: float32 against numpy; integers against numpy on the dequantized weights, first with exact
activations and then as shipped; float16; and, for each, token by token against one pass.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qtool
import qtool_targets
from support import numpy_decoder
from support.dequantized import dequantized
from support.fixtures import Artifacts, Checkpoints
from support.raw_session import RawSession, distance, with_exact_activations
from support.tiny import TinyCheckpoint
from support.tolerances import TOLERANCES

TOKENS = np.random.default_rng(1).integers(0, 300, 40).tolist()
MODELS = [("qwen2", True), ("qwen2", False), ("qwen3", True), ("qwen3", False)]
TARGETS = {name: qtool_targets.load(name) for name in qtool_targets.names()}
QUANTIZED = [name for name, target in TARGETS.items() if target.weights.bits <= 8]
HALF = [name for name, target in TARGETS.items() if target.precision.activations == "float16"]

each_model = pytest.mark.parametrize(
    ("architecture", "tied"), MODELS, ids=[f"{name}-{'tied' if tied else 'untied'}" for name, tied in MODELS]
)


def kind_of(target: str) -> str:
    if target in HALF:
        return "float16"
    return {32: "float32", 8: "int8", 4: "int4"}[TARGETS[target].weights.bits]


def expected_logits(checkpoint: TinyCheckpoint, target: str) -> np.ndarray:
    tensors = dequantized(checkpoint.tensors, TARGETS[target])
    return numpy_decoder.logits(checkpoint.config, tensors, TOKENS)


@each_model
def test_float32_graph_equals_numpy(
    tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts, architecture: str, tied: bool
) -> None:
    checkpoint = tiny_checkpoint(architecture, tied=tied)
    expected = numpy_decoder.logits(checkpoint.config, checkpoint.tensors, TOKENS)
    found = RawSession(tiny_artifact("x64-fp32", architecture, tied=tied)).forward(TOKENS, rows=40)
    assert distance(found, expected) < TOLERANCES["float32"]["reference"]
    assert np.ptp(expected) > 10  # the comparison would pass on zeros


@each_model
@pytest.mark.parametrize("target", HALF)
def test_float16_graph_equals_numpy(
    tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts, target: str, architecture: str, tied: bool
) -> None:
    found = RawSession(tiny_artifact(target, architecture, tied=tied)).forward(TOKENS, rows=40)
    assert found.dtype == np.float16
    expected = expected_logits(tiny_checkpoint(architecture, tied=tied), target)
    assert distance(found, expected) < TOLERANCES["float16"]["reference"]


def in_pieces(folder: Path) -> np.ndarray:
    """Logits of all tokens: a prompt, then one token after the other, then several more at once."""
    session = RawSession(folder)
    pieces = [session.forward(TOKENS[:7], rows=7)]
    pieces += [session.forward([token], rows=1) for token in TOKENS[7:30]]
    pieces += [session.forward(TOKENS[30:], rows=10)]
    return np.concatenate(pieces)


@each_model
@pytest.mark.parametrize("target", [name for name in QUANTIZED if name not in HALF])
def test_quantized_graph_with_exact_activations_equals_numpy_on_dequantized_weights(
    tiny_checkpoint: Checkpoints,
    tiny_artifact: Artifacts,
    tmp_path: Path,
    target: str,
    architecture: str,
    tied: bool,
) -> None:
    folder = with_exact_activations(tiny_artifact(target, architecture, tied=tied), tmp_path / "exact")
    found = RawSession(folder).forward(TOKENS, rows=40)
    expected = expected_logits(tiny_checkpoint(architecture, tied=tied), target)
    assert distance(found, expected) < TOLERANCES["float32"]["reference"]
    assert distance(in_pieces(folder), found) < TOLERANCES["float32"]["cached"]


@each_model
@pytest.mark.parametrize("target", ["x64-int8", "x64-int4", "web-int4"])
def test_quantized_graph_as_shipped_is_near_numpy_on_dequantized_weights(
    tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts, target: str, architecture: str, tied: bool
) -> None:
    checkpoint = tiny_checkpoint(architecture, tied=tied)
    found = RawSession(tiny_artifact(target, architecture, tied=tied)).forward(TOKENS, rows=40)
    assert distance(found, expected_logits(checkpoint, target)) < TOLERANCES[kind_of(target)]["dequantized"]


@each_model
@pytest.mark.parametrize(
    "target", ["x64-fp32", "x64-int8", "x64-int4", "cuda-fp16", "cuda-int4", "directml-fp16", "directml-int4"]
)
def test_cached_decode_equals_one_pass(
    tiny_artifact: Artifacts, target: str, architecture: str, tied: bool
) -> None:
    folder = tiny_artifact(target, architecture, tied=tied)
    whole = RawSession(folder).forward(TOKENS, rows=40)
    assert distance(in_pieces(folder), whole) < TOLERANCES[kind_of(target)]["cached"]


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
@pytest.mark.parametrize("target", ["x64-fp32", "x64-int4", "cuda-fp16"])
def test_as_many_rows_of_logits_as_asked_for_counted_from_the_end(
    tiny_artifact: Artifacts, target: str, architecture: str
) -> None:
    folder = tiny_artifact(target, architecture)
    whole = RawSession(folder).forward(TOKENS, rows=40)
    tolerance = TOLERANCES[kind_of(target)]["cached"]
    for rows in (1, 2, 17, 39):
        found = RawSession(folder).forward(TOKENS, rows=rows)
        assert distance(found, whole[-rows:]) < tolerance
    default = RawSession(folder).forward(TOKENS)
    assert distance(default, whole[-1:]) < tolerance


def test_every_position_up_to_the_last_of_the_context_is_rotated_right(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """The tables of sines and cosines have one row a token of the context: the last one counts too."""
    checkpoint = tiny_checkpoint("qwen3")
    context = 48
    artifact = qtool.build(checkpoint.folder, target="x64-fp32", output=tmp_path / "short", context=context)
    tokens = (TOKENS * 2)[:context]
    expected = numpy_decoder.logits(checkpoint.config, checkpoint.tensors, tokens)
    found = RawSession(artifact.path, capacity=context).forward(tokens, rows=context)
    assert distance(found, expected) < TOLERANCES["float32"]["reference"]


def test_numpy_reference_is_causal_and_position_aware(tiny_checkpoint: Checkpoints) -> None:
    """The referee itself: a later token changes nothing before it, and order matters."""
    checkpoint = tiny_checkpoint("qwen3")
    whole = numpy_decoder.logits(checkpoint.config, checkpoint.tensors, TOKENS[:12])
    part = numpy_decoder.logits(checkpoint.config, checkpoint.tensors, TOKENS[:9])
    np.testing.assert_allclose(whole[:9], part, atol=1e-12)
    swapped = [*TOKENS[:2][::-1], *TOKENS[2:12]]
    other = numpy_decoder.logits(checkpoint.config, checkpoint.tensors, swapped)
    assert distance(other[-1], whole[-1]) > 1e-3
