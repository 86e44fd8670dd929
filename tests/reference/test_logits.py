"""The native export computes what transformers computes: logits of tiny random models in float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import qtool
from support.fixtures import Artifacts, Checkpoints
from support.raw_session import RawSession, distance
from support.tiny import write_tiny_checkpoint

pytest.importorskip("torch", reason="the comparison with transformers needs torch")
transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")

Load = Callable[[Path], Callable[[list[int]], np.ndarray]]
"""The fixture `reference_of`."""
MODELS = [("qwen2", True), ("qwen2", False), ("qwen3", True), ("qwen3", False)]
LENGTHS = [1, 2, 7, 64, 200]
CAPACITY = 256
TARGET = "x64-fp32"


def prompt(length: int, seed: int = 0) -> list[int]:
    """Returns random token ids of the tiny vocabulary."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, 300, length)]


@pytest.fixture(params=MODELS, ids=lambda model: f"{model[0]}-{'tied' if model[1] else 'untied'}")
def model(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Architecture, and whether embedding and LM head are one tensor."""
    found: tuple[str, bool] = request.param
    return found


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_of_every_position(
    model: tuple[str, bool],
    length: int,
    tiny_checkpoint: Checkpoints,
    tiny_artifact: Artifacts,
    reference_of: Load,
    tolerance: float,
) -> None:
    architecture, tied = model
    tokens = prompt(length, seed=length)
    expected = reference_of(tiny_checkpoint(architecture, tied=tied).folder)(tokens)
    found = RawSession(tiny_artifact(TARGET, architecture, tied=tied), CAPACITY).forward(tokens, rows=length)
    assert distance(found, expected) < tolerance


def test_logits_with_a_cache(
    model: tuple[str, bool],
    tiny_checkpoint: Checkpoints,
    tiny_artifact: Artifacts,
    reference_of: Load,
    tolerance: float,
) -> None:
    architecture, tied = model
    tokens = prompt(40)
    expected = reference_of(tiny_checkpoint(architecture, tied=tied).folder)(tokens)
    session = RawSession(tiny_artifact(TARGET, architecture, tied=tied), CAPACITY)
    # A first part, a second part that sees the first through the cache, then one token at a time.
    rows = [session.forward(tokens[:20], rows=20), session.forward(tokens[20:30], rows=10)]
    rows += [session.forward([token]) for token in tokens[30:]]
    assert distance(np.concatenate(rows), expected) < tolerance


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_a_checkpoint_that_transformers_saved(
    architecture: str, tmp_path: Path, transformers_major: int, reference_of: Load, tolerance: float
) -> None:
    theta = 20_000.0
    source = write_tiny_checkpoint(tmp_path / "source", architecture=architecture, rope_theta=theta)
    saved = tmp_path / "saved"
    model = transformers.AutoModelForCausalLM.from_pretrained(source.folder)
    model.save_pretrained(saved)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source.folder / name, saved / name)
    config = json.loads((saved / "config.json").read_text("utf-8"))
    if transformers_major >= 5:
        assert "rope_theta" not in config
        assert config["rope_parameters"]["rope_theta"] == theta
    artifact = qtool.build(saved, target=TARGET, output=tmp_path / "artifact").path
    tokens = prompt(100)
    found = RawSession(artifact, CAPACITY).forward(tokens, rows=len(tokens))
    assert distance(found, reference_of(saved)(tokens)) < tolerance


def test_the_rotary_base_matters(
    tmp_path: Path, edit_json: Callable[[Path, dict[str, object]], None], reference_of: Load
) -> None:
    """Without this, the test above would pass if nobody read the base."""
    folder = write_tiny_checkpoint(tmp_path / "source", rope_theta=20_000.0).folder
    tokens = prompt(100)
    expected = reference_of(folder)(tokens)
    edit_json(folder / "config.json", {"rope_theta": 1_000_000.0})
    artifact = qtool.build(folder, target=TARGET, output=tmp_path / "artifact").path
    assert distance(RawSession(artifact, CAPACITY).forward(tokens, rows=len(tokens)), expected) > 1e-2
