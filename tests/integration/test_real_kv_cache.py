"""A real checkpoint with an int8 KV cache: near the float one through a long text, in a quarter of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qtool
import qtool_runtime
from support.genai import greedy
from support.places import real_model

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPT = "def fibonacci(n):\n    "


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Artifacts by the type of their cache."""
    model = real_model("qwen2.5-coder-0.5b")
    if model is None:
        pytest.skip("no real checkpoint (QTOOL_REAL_MODELS)")
    folder = tmp_path_factory.mktemp("real")
    kinds = ("float32", "int8")
    paths = {
        kind: qtool.build(model, target="x64-int4", kv_cache=kind, output=folder / kind).path
        for kind in kinds
    }
    yield paths
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def log_probabilities(folder: Path, tokens: np.ndarray) -> tuple[np.ndarray, int]:
    """Reads a text in pieces; returns float64 (tokens, vocab_size), and the bytes of the cache."""
    with qtool_runtime.load(folder) as model:
        session = model.new_session()
        pieces = [
            session.forward(piece, len(piece)).copy() for piece in np.split(tokens, [300, 301, 302, 700])
        ]
        size = session.cache_bytes
    logits = np.concatenate(pieces).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), size


def test_the_distributions_are_near(built: dict[str, Path]) -> None:
    """On prose that it was not calibrated on: this repository's licence."""
    text = (Path(__file__).parents[2] / "LICENSE").read_text("utf-8")
    with qtool_runtime.load(built["int8"]) as model:
        tokens = np.array(model.tokenizer.encode(text)[:900])
    one, size = log_probabilities(built["float32"], tokens)
    other, small = log_probabilities(built["int8"], tokens)
    divergence = (np.exp(one) * (one - other)).sum(axis=1)
    agreement = (one.argmax(axis=1) == other.argmax(axis=1)).mean()
    print(f"\nKL {divergence.mean():.5f}, top-1 {agreement:.1%}, {size} and {small} bytes")
    assert (
        divergence.mean() < 0.01
    )  # measured 0.004; with one scale a tensor it would be some twenty times that
    assert agreement > 0.95
    assert small * 4 == size


def test_genai_reads_and_writes_the_same_tokens(built: dict[str, Path]) -> None:
    with qtool_runtime.load(built["int8"], context=512) as model:
        tokens = list(model.tokenizer.encode(PROMPT))
        stream = model.generate(PROMPT, max_tokens=24)
        text = stream.read()
    assert "return" in text
    assert greedy(built["int8"], PROMPT, 24) == (tokens, list(stream.token_ids))
