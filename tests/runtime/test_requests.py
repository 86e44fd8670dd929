"""Deadlines, log-probabilities and several answers to one prompt, with real sessions."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from qtool_runtime import Model, load
from qtool_runtime.engine import Session
from qtool_runtime.errors import GenerationError
from qtool_runtime.manifest import Generation

from .decoder_graphs import TinyDecoder, write_artifact

PROMPT = "the cat sat on the"
MESSAGES = [{"role": "user", "content": "the café"}]
NO_EOS = Generation(None, (), None, False, 1.0, 0, 1.0, 1.0)


@pytest.fixture(scope="module", params=["in_place", "concatenate"])
def either(request: pytest.FixtureRequest, tmp_path_factory, tokenizer_json: bytes, engine: str):
    """A model of each kind of cache, in each engine, without end tokens and with room for a long answer."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    decoder = TinyDecoder(update=request.param, context=2000)
    write_artifact(folder, decoder, {"tokenizer.json": tokenizer_json}, generation=NO_EOS)
    with load(folder, threads=1, engine=engine) as model:
        yield model


def rows_of(model: Model, tokens: Sequence[int]) -> np.ndarray:
    """What a model predicts behind each token: logits of shape (tokens, vocab_size)."""
    session = model.new_session()
    return np.concatenate([session.forward([token]).copy() for token in tokens]).astype(np.float64)


# Penalties, bias and bans, through the whole of a generation


def test_banned_tokens_do_not_come_and_favoured_ones_do(model: Model) -> None:
    free = model.generate(PROMPT, max_tokens=30, ignore_eos=True)
    free.read()
    banned = sorted(set(free.token_ids))[:5]
    stream = model.generate(PROMPT, max_tokens=30, ignore_eos=True, banned_ids=banned)
    stream.read()
    assert not set(stream.token_ids) & set(banned)
    stream = model.generate(PROMPT, max_tokens=5, ignore_eos=True, logit_bias={77: 100})
    stream.read()
    assert stream.token_ids == (77,) * 5


def test_frequency_penalty_ends_repetition(model: Model) -> None:
    options = {"max_tokens": 40, "ignore_eos": True, "logit_bias": {77: 40}}
    assert len(set(_tokens(model, **options))) == 1
    assert len(set(_tokens(model, frequency_penalty=5, **options))) > 5
    assert _tokens(model, presence_penalty=100, **options).count(77) == 1


def _tokens(model: Model, **options) -> tuple[int, ...]:
    stream = model.generate(PROMPT, **options)
    stream.read()
    return stream.token_ids


# Deadlines


def test_deadline_ends_the_answer(either: Model) -> None:
    started = time.perf_counter()
    stream = either.generate(PROMPT, deadline=0.1)
    text = "".join(stream)
    assert stream.stop_reason == "deadline"
    assert time.perf_counter() - started >= 0.1
    assert 1 <= len(stream.token_ids) < 1900
    assert text == either.tokenizer.decode(stream.token_ids)  # with what was kept back


def test_deadline_counts_the_callers_time_but_not_that_before_the_start(model: Model) -> None:
    stream = model.generate(PROMPT, deadline=0.2, ignore_eos=True)
    time.sleep(0.25)
    next(stream)
    time.sleep(0.25)
    stream.read()
    assert stream.stop_reason == "deadline"


def test_deadline_may_end_the_reading_of_a_prompt(either: Model) -> None:
    stream = either.generate([5] * 1800, deadline=1e-9)
    assert stream.read() == ""
    assert (stream.stop_reason, stream.token_ids) == ("deadline", ())


def test_deadline_that_is_not_reached_changes_nothing(model: Model) -> None:
    free = model.generate(PROMPT, max_tokens=10, ignore_eos=True)
    limited = model.generate(PROMPT, max_tokens=10, ignore_eos=True, deadline=1000)
    assert limited.read() == free.read()
    assert limited.stop_reason == "length"


# Log-probabilities


def test_logprobs_are_of_the_models_own_distribution(model: Model) -> None:
    """Whatever was done to it before the draw: compared with a forward pass over the whole text."""
    options = {"temperature": 2.0, "top_k": 30, "presence_penalty": 1.0, "logit_bias": {7: 3}, "seed": 2}
    stream = model.generate(PROMPT, max_tokens=20, ignore_eos=True, logprobs=3, **options)
    assert stream.logprobs == ()
    stream.read()
    prompt = model.tokenizer.encode(PROMPT)
    tokens = [*prompt, *stream.token_ids]
    logits = rows_of(model, tokens)[len(prompt) - 1 : -1]
    expected = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    expected -= logits.max(1, keepdims=True)
    assert [record.token_id for record in stream.logprobs] == list(stream.token_ids)
    for record, row in zip(stream.logprobs, expected, strict=True):
        assert record.logprob == pytest.approx(row[record.token_id], abs=1e-3)
        best = np.argsort(-row, kind="stable")[:3]
        assert [each.logprob for each in record.alternatives] == pytest.approx(row[best], abs=1e-3)


def test_logprobs_without_alternatives_and_none(model: Model) -> None:
    stream = model.generate(PROMPT, max_tokens=4, ignore_eos=True, logprobs=0)
    stream.read()
    assert [record.alternatives for record in stream.logprobs] == [()] * 4
    plain = model.generate(PROMPT, max_tokens=4, ignore_eos=True)
    plain.read()
    assert plain.logprobs == ()


# Several answers


OPTIONS = {"temperature": 1.5, "seed": 4, "max_tokens": 30}


def test_candidates_are_what_a_prompt_read_for_each_would_give(either: Model) -> None:
    """Each answer's own log-probabilities, against those of its text read in one piece."""
    first = either.generate(PROMPT, candidates=3, logprobs=0, **OPTIONS)
    assert first.candidates[0] is first
    texts = [stream.read() for stream in first.candidates]
    assert len(set(texts)) == 3
    assert texts[0] == either.generate(PROMPT, **OPTIONS).read()
    prompt = either.tokenizer.encode(PROMPT)
    for stream in first.candidates:
        tokens = [*prompt, *stream.token_ids]
        logits = rows_of(either, tokens)[len(prompt) - 1 : -1]
        shifted = logits - logits.max(1, keepdims=True)
        expected = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        chosen = expected[np.arange(30), list(stream.token_ids)]
        assert [record.logprob for record in stream.logprobs] == pytest.approx(chosen, abs=1e-3)


def test_the_prompt_is_read_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """By engines that can copy what was read."""
    session = model.new_session()
    lengths: list[int] = []
    forward = type(session).forward

    def counted(self: Session, token_ids, rows: int = 1):
        lengths.append(len(token_ids))
        return forward(self, token_ids, rows)

    monkeypatch.setattr(type(session), "forward", counted)
    for stream in model.generate([1, 2, 3, 4, 5], candidates=4, **OPTIONS).candidates:
        stream.read()
    assert [length for length in lengths if length > 1] == [5] * (4 if session.snapshot() is None else 1)


def test_candidates_in_any_order_and_at_the_same_time(model: Model) -> None:
    def texts(order) -> list[str]:
        streams = model.generate(PROMPT, candidates=4, **OPTIONS).candidates
        order(streams)
        return [stream.text for stream in streams]

    def in_threads(streams) -> None:
        threads = [threading.Thread(target=stream.read) for stream in streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def interleaved(streams) -> None:
        for _ in range(5):
            for stream in streams:
                next(stream, None)
        for stream in streams:
            stream.read()

    expected = texts(lambda streams: [stream.read() for stream in streams])
    assert texts(lambda streams: [stream.read() for stream in reversed(streams)]) == expected
    assert texts(interleaved) == expected
    assert texts(in_threads) == expected


def test_a_cancelled_candidate_leaves_the_others(model: Model) -> None:
    expected = [stream.read() for stream in model.generate(PROMPT, candidates=3, **OPTIONS).candidates]
    streams = model.generate(PROMPT, candidates=3, **OPTIONS).candidates
    streams[0].cancel()
    assert streams[0].read() == ""
    assert streams[0].stop_reason == "cancelled"
    assert [stream.read() for stream in streams[1:]] == expected[1:]


def test_candidates_of_a_chat(model: Model) -> None:
    streams = model.chat(MESSAGES, candidates=2, seed=1, max_tokens=20).candidates
    assert streams[0].read() == model.chat(MESSAGES, seed=1, max_tokens=20).read()
    assert streams[1].read() != streams[0].text


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline": 0}, "deadline is 0; valid: None, or seconds above 0"),
        ({"deadline": -1.0}, "deadline is -1.0"),
        ({"deadline": float("nan")}, "deadline is nan"),
        ({"deadline": "5"}, "deadline is '5'"),
        ({"deadline": True}, "deadline is True"),
        ({"logprobs": -1}, "logprobs is -1; valid: None, or 0 to 20"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"logprobs": True}, "logprobs is True"),
        ({"candidates": 0}, "candidates is 0; valid: 1 to 64"),
        ({"candidates": 65}, "candidates is 65"),
        ({"candidates": 2.0}, "candidates is 2.0"),
        ({"candidates": 2, "temperature": 0}, "candidates is 2, but the most likely token is always taken"),
        ({"candidates": 2, "temperature": 1.0, "top_k": 1}, "candidates is 2, but"),
        ({"logit_bias": {300: 1.0}}, "logit_bias has the token id 300; valid: 0 to 299"),
        ({"banned_ids": [3, 999]}, "banned_ids has the token id 999; valid: 0 to 299"),
        ({"banned_ids": list(range(300))}, "banned_ids holds all 300 tokens"),
        ({"presence_penalty": 101}, "presence_penalty is 101; valid"),
    ],
)
@pytest.mark.usefixtures("never_run")
def test_bad_requests(model: Model, options: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        model.generate(PROMPT, **options)
    with pytest.raises(GenerationError, match=message):
        model.chat(MESSAGES, **options)
