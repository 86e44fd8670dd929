"""With `exact_drafts`, a token's result does not depend on which drafts a forward pass reads with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qtool
from qtool_runtime import GenerationError, IncompatibleRuntimeError, Model, load
from qtool_runtime.errors import ContextLimitError
from qtool_runtime.exact_drafts import ROW_MULTIPLES

from .decoder_graphs import TinyDecoder, write_artifact

PIECES = [1, 9, 2, 1, 8, 3, 7, 4, 6, 5, 1, 2, 3]
PROMPTS = ["Turn on the kitchen light", "What is 7 + 5?", "Say this twice: one two three one two three"]


@pytest.fixture(scope="module", params=["x64-int4", "x64-int8", "x64-fp32"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model."""
    return qtool.build(target=request.param, output=tmp_path_factory.mktemp("nano") / request.param).path


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Model]:
    with load(artifact, kernels="off", exact_drafts=True, threads=2, prefix_memory=0) as loaded:
        yield loaded


def logits(model: Model, tokens: np.ndarray, pieces: list[int]) -> np.ndarray:
    """The logits behind all tokens but the first 40: those one after the other, in pieces of such lengths."""
    session = model.new_session()
    session.forward(tokens[:40])
    return np.concatenate(
        [session.forward(piece, len(piece)).copy() for piece in np.split(tokens[40:], np.cumsum(pieces)[:-1])]
    )


def test_logits_are_the_same_bits_with_drafts_of_any_length(model: Model) -> None:
    prompt = "The kitchen light is on, and the heating in the bathroom is set to 21 degrees. " * 8
    tokens = np.array(model.tokenizer.encode(prompt))[: 40 + sum(PIECES)]
    expected = logits(model, tokens, [1] * sum(PIECES))
    np.testing.assert_array_equal(logits(model, tokens, PIECES), expected)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_with_drafts_are_the_same(model: Model, prompt: str) -> None:
    messages = [{"role": "user", "content": prompt}]
    plain, drafted = (
        model.chat(messages, temperature=0, max_tokens=48, ignore_eos=True, logprobs=0, speculate=speculate)
        for speculate in (False, True)
    )
    assert plain.read() == drafted.read()
    assert plain.token_ids == drafted.token_ids
    assert plain.stats.logprobs == drafted.stats.logprobs
    assert drafted.stats.drafted_tokens > 0


def test_batches_go_on_as_ever(model: Model) -> None:
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    together = model.chat_batch(conversations, temperature=0, max_tokens=32)
    alone = [model.chat(each, temperature=0, max_tokens=32) for each in conversations]
    assert together.read() == [stream.read() for stream in alone]


def test_what_is_filled_in_stays_within_the_context(artifact: Path) -> None:
    with load(artifact, kernels="off", exact_drafts=True, context=128, prefix_memory=0) as model:
        assert 128 - max(ROW_MULTIPLES) < model.context <= 128
        stream = model.generate("Once upon a time", temperature=0, ignore_eos=True)
        stream.read()
        assert stream.stats.stop_reason == "context"
        session = model.new_session()
        session.forward([5] * model.context)
        with pytest.raises(ContextLimitError):
            session.forward([5])
        assert session.length == model.context


@pytest.mark.parametrize("update", ["in_place", "concatenate"])
def test_with_both_kinds_of_cache(update: str, tmp_path: Path, tokenizer_json: bytes) -> None:
    decoder = TinyDecoder(update=update, context=200)
    write_artifact(tmp_path / "a", decoder, {"tokenizer.json": tokenizer_json})
    with load(tmp_path / "a", threads=1, exact_drafts=True, prefix_memory=0) as model:
        tokens = np.arange(40 + sum(PIECES)) % model.manifest.model.vocab_size
        expected = logits(model, tokens, [1] * sum(PIECES))
        np.testing.assert_array_equal(logits(model, tokens, PIECES), expected)


def test_it_is_refused_where_there_is_no_room_to_try(artifact: Path) -> None:
    with pytest.raises(IncompatibleRuntimeError, match="context of 113 tokens or more, not 40"):
        load(artifact, kernels="off", exact_drafts=True, context=40)


def test_the_engine_genai_refuses_it(artifact: Path) -> None:
    with pytest.raises(GenerationError, match="exact_drafts"):
        load(artifact, engine="genai", exact_drafts=True)
