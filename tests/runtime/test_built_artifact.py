"""What the compiler writes, the runtime runs: artifacts built from tiny checkpoints, end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qtool
import qtool_runtime
from qtool_runtime.engine import Session
from qtool_runtime.integrity import find_problems
from qtool_runtime.model import Model
from support.tiny import write_tiny_checkpoint

CASES = [("qwen2", "x64-int4"), ("qwen2", "x64-int8"), ("qwen3", "x64-int4"), ("qwen3", "arm64-int8")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, target = request.param
    folder = tmp_path_factory.mktemp(f"{architecture}-{target}")
    write_tiny_checkpoint(folder / "checkpoint", architecture=architecture)
    return qtool.build(folder / "checkpoint", target=target, output=folder / "artifact", context=200).path


@pytest.fixture(scope="module")
def model(built: Path) -> Model:
    return qtool_runtime.load(built, threads=1, verify=True)


@pytest.fixture(scope="module")
def tokens(model: Model) -> np.ndarray:
    return np.random.default_rng(3).integers(0, model.manifest.model.vocab_size, 90)


@pytest.fixture(scope="module")
def whole(model: Model, tokens: np.ndarray) -> np.ndarray:
    return model.new_session().forward(tokens, rows=len(tokens)).copy()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding: kernels round activations to 8 bits, and a sum in another order can tip one.

    A cache that is wrong by one position differs by as much as the logits themselves.
    """
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 0.03 * scale
    assert np.median(np.abs(found - expected)) < 1e-3 * scale


def test_artifact_is_whole(built: Path, model: Model) -> None:
    assert find_problems(built, model.manifest, hashes=True) == []
    assert model.context == 200


def test_cached_decode_equals_uncached_prefill(model: Model, tokens, whole) -> None:
    session: Session = model.new_session()
    steps = np.concatenate([session.forward([token]).copy() for token in tokens])
    assert np.ptp(whole) > 0.1
    assert_close(steps, whole)


@settings(deadline=None, max_examples=15)
@given(cuts=st.sets(st.integers(1, 89), max_size=6))
def test_pieces_equal_the_whole(model: Model, tokens, whole, cuts: set[int]) -> None:
    session = model.new_session()
    ends = zip([0, *sorted(cuts)], [*sorted(cuts), 90], strict=True)
    pieces = [session.forward(tokens[start:end], rows=end - start).copy() for start, end in ends]
    assert_close(np.concatenate(pieces), whole)


def test_generate_and_chat(model: Model) -> None:
    stream = model.generate("Hello world", max_tokens=20, ignore_eos=True)
    assert "".join(stream) == model.tokenizer.decode(stream.token_ids)
    assert stream.stop_reason == "length"
    messages = [{"role": "user", "content": "Hello"}]
    assert (
        model.chat(messages, max_tokens=5, seed=1).read() == model.chat(messages, max_tokens=5, seed=1).read()
    )


def test_generation_to_the_end_of_the_context_crosses_growth_steps(model: Model) -> None:
    stream = model.generate("Hello", ignore_eos=True)
    stream.read()
    assert stream.stop_reason == "context"
    assert stream.stats.prompt_tokens + len(stream.token_ids) == 200
