"""Generations that continue what others have read: less work, the same answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtool_runtime import Model, load
from qtool_runtime.conversation import encode_conversation
from qtool_runtime.errors import GenerationError
from qtool_runtime.prefix_memory import PrefixMemory
from qtool_runtime.prompt import Prompt
from qtool_runtime.session import OnnxSession
from qtool_runtime.stream import TextStream

from .conftest import TEMPLATE
from .decoder_graphs import TinyDecoder, write_artifact

KINDS = {
    "in_place": TinyDecoder(context=400),
    "in_place_half": TinyDecoder(half=True, context=400),
    "concatenate": TinyDecoder(update="concatenate", context=400),
}
PROMPT = [int(token) for token in np.random.default_rng(3).integers(0, 290, 150)]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory, tokenizer_json: bytes) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return write_artifact(
        folder,
        KINDS[request.param],
        {"tokenizer.json": tokenizer_json, "chat_template.jinja": TEMPLATE.encode()},
    )


@pytest.fixture(scope="module")
def fresh(folder: Path) -> Iterator[Model]:
    """A model that remembers nothing."""
    with load(folder, threads=1, prefix_memory=0) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[Model]:
    with load(folder, threads=1) as loaded:
        yield loaded


@pytest.fixture
def model(loaded: Model) -> Model:
    """A model with an empty memory."""
    loaded.forget()
    return loaded


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward pass reads."""
    counts: list[int] = []
    forward = OnnxSession.forward

    def count(session: OnnxSession, token_ids: Any, rows: int = 1) -> Any:
        counts.append(len(token_ids))
        return forward(session, token_ids, rows)

    monkeypatch.setattr(OnnxSession, "forward", count)
    return counts


def answer(model: Model, prompt: list[int] = PROMPT, tokens: int = 20, **options: Any) -> TextStream:
    stream = model.generate(prompt, max_tokens=tokens, ignore_eos=True, **options)
    stream.read()
    return stream


def test_the_same_prompt_reads_its_last_two_tokens(model: Model, fresh: Model, forwarded: list[int]) -> None:
    expected = answer(fresh)
    forwarded.clear()
    first, second = answer(model), answer(model)
    assert forwarded == [150] + [1] * 19 + [2] + [1] * 19
    assert first.token_ids == second.token_ids == expected.token_ids
    assert [stream.stats.cached_tokens for stream in (expected, first, second)] == [0, 0, 148]
    assert second.stats.prefill_rate == pytest.approx(2 / second.stats.time_to_first_token)


def test_every_turn_reads_what_is_new(model: Model, fresh: Model, forwarded: list[int]) -> None:
    """Behind an answer, all but its last token is known, which no forward pass has read."""
    conversation = list(PROMPT)
    for turn in range(5):
        expected = answer(fresh, conversation)
        forwarded.clear()
        stream = answer(model, conversation)
        assert stream.token_ids == expected.token_ids
        assert forwarded[0] == (150 if turn == 0 else 1 + 7)
        assert stream.stats.cached_tokens == len(conversation) - forwarded[0]
        conversation += [*stream.token_ids, *PROMPT[turn : turn + 7]]


def test_a_turn_that_drops_a_part_reads_from_there(model: Model, fresh: Model, forwarded: list[int]) -> None:
    """As templates drop earlier reasoning."""
    reasoned = answer(model).token_ids
    rest = [token for token in reasoned[5:] if token != reasoned[0]] + PROMPT[:9]
    forwarded.clear()
    stream = answer(model, PROMPT + rest)
    assert forwarded[0] == len(rest)
    assert stream.token_ids == answer(fresh, PROMPT + rest).token_ids


def end_by_stop_string(model: Model) -> TextStream:
    text = answer(model, remember=False).text
    stream = model.generate(PROMPT, max_tokens=20, ignore_eos=True, stop=text[4:7])
    stream.read()
    assert stream.stop_reason == "stop"
    return stream


def end_by_cancelling(model: Model) -> TextStream:
    stream = model.generate(PROMPT, ignore_eos=True)
    while len(stream.token_ids) < 9:
        assert stream.step()
    stream.cancel()
    stream.read()
    assert stream.stop_reason == "cancelled"
    return stream


def end_by_closing(model: Model) -> TextStream:
    with model.generate(PROMPT, ignore_eos=True) as stream:
        while len(stream.token_ids) < 9:
            assert stream.step()
    return stream


def end_by_drafting(model: Model) -> TextStream:
    """Closed while the session may hold draft tokens that were wrong."""
    with model.generate(PROMPT[:30] * 5, ignore_eos=True, speculate=True) as stream:
        while len(stream.token_ids) < 60:
            assert stream.step()
    return stream


@pytest.mark.parametrize("end", [end_by_stop_string, end_by_cancelling, end_by_closing, end_by_drafting])
def test_however_it_ends_only_what_was_read_is_remembered(model: Model, fresh: Model, end: Any) -> None:
    stream = end(model)
    prompt = PROMPT[:30] * 5 if end is end_by_drafting else PROMPT
    known = [*prompt, *stream.token_ids]
    asked = [*known, *PROMPT[:5]]
    again = answer(model, asked)
    assert again.token_ids == answer(fresh, asked).token_ids
    assert len(known) - 2 <= again.stats.cached_tokens <= len(known)


def test_a_cancelled_prompt_keeps_what_was_read(loaded: Model) -> None:
    graph, memory = replace(loaded._engine.graph, prefill_chunk=16), PrefixMemory(10**7)
    session = OnnxSession(graph)
    run = session._run

    def cancel_later(tokens: np.ndarray, rows: int) -> np.ndarray:
        if session.length == 64:
            session.cancel()
        return run(tokens, rows)

    session._run = cancel_later  # type: ignore[method-assign]
    with pytest.raises(GenerationError, match="cancelled"):
        Prompt(np.array(PROMPT), memory).read_into(session)
    known = sum(piece[0].shape[2] for piece in memory.find(PROMPT))
    # What the earlier runs of such a graph returned may be gone after a run that failed.
    assert known == (0 if graph.cache_layout.update == "concatenate" else 64)


def test_a_secret_prompt_is_not_remembered_and_may_use_what_is_known(model: Model) -> None:
    answer(model, remember=False)
    assert model.prefix_memory.bytes == 0
    answer(model, PROMPT[:100], remember=True)
    held = model.prefix_memory.bytes
    assert answer(model, remember=False).stats.cached_tokens == 100
    assert model.prefix_memory.bytes == held


def test_forgetting(model: Model) -> None:
    answer(model)
    assert model.prefix_memory.bytes == 169 * model.manifest.kv_cache.bytes_per_token
    model.forget()
    assert model.prefix_memory.bytes == 0
    assert answer(model).stats.cached_tokens == 0


def test_a_bounded_memory_changes_no_answer(folder: Path, fresh: Model) -> None:
    limit = 100 * fresh.manifest.kv_cache.bytes_per_token
    with load(folder, threads=1, prefix_memory=limit) as model:
        for start in (0, 40, 0, 10, 0):
            prompt = PROMPT[start:] + PROMPT[:start]
            assert answer(model, prompt).token_ids == answer(fresh, prompt).token_ids
            assert 0 < model.prefix_memory.bytes <= limit


def test_candidates_share_the_prompt_and_remember_their_own_answers(model: Model) -> None:
    streams = model.generate(
        PROMPT, max_tokens=20, ignore_eos=True, temperature=1.5, seed=1, candidates=3
    ).candidates
    for stream in streams:
        stream.read()
    assert [stream.stats.cached_tokens for stream in streams] == [0, 150, 150]
    for stream in streams:
        asked = [*PROMPT, *stream.token_ids, 5]
        assert answer(model, asked).stats.cached_tokens == len(asked) - 2  # the last one was not read


def test_a_prompt_that_was_shortened_on_the_way(model: Model, fresh: Model) -> None:
    """Then the session has read something else than the prompt and all of the answer."""
    roles = ["system", *["user", "assistant"] * 4, "user"]
    messages = [{"role": role, "content": f"{turn} the café"} for turn, role in enumerate(roles)]
    options: Any = {"when_full": "drop_oldest", "ignore_eos": True, "temperature": 0}
    expected = fresh.chat(messages, **options)
    expected.read()
    stream = model.chat(messages, **options)
    stream.read()
    assert stream.token_ids == expected.token_ids
    prompt, _ = encode_conversation(
        model.chat_template, model.tokenizer, messages, tools=None, enable_thinking=None
    )
    assert len(prompt) + len(stream.token_ids) > model.context
    asked = [*prompt, *stream.token_ids][:370]
    assert answer(model, asked).token_ids == answer(fresh, asked).token_ids


def test_a_batch_shares_what_its_prompts_start_with(model: Model, fresh: Model) -> None:
    prompts = [[*PROMPT, number, *PROMPT[:9]] for number in range(5)]
    answers = model.generate_batch(prompts, at_once=3, max_tokens=20, ignore_eos=True)
    for _ in answers.pieces():
        pass
    assert [stream.token_ids for stream in answers] == [answer(fresh, prompt).token_ids for prompt in prompts]
    assert [stream.stats.cached_tokens for stream in answers] == [0, 150, 150, 150, 150]
    for stream, prompt in zip(answers, prompts, strict=True):
        asked = [*prompt, *stream.token_ids, *PROMPT[:3]]
        again = answer(model, asked)
        assert again.token_ids == answer(fresh, asked).token_ids
        assert again.stats.cached_tokens == len(asked) - 4


def test_conversations_at_the_same_time(model: Model, fresh: Model) -> None:
    """They all start alike, and answer as they would alone."""
    prompts = [[*PROMPT, *PROMPT[number : number + 9]] for number in range(6)]
    expected = [answer(fresh, prompt).token_ids for prompt in prompts]
    found: dict[int, list[tuple[int, ...]]] = {}

    def talk(number: int) -> None:
        found[number] = [answer(model, prompts[number]).token_ids for _ in range(3)]

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [expected[number]] * 3 for number in range(6)}


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 150), st.integers(1, 40), st.booleans()), min_size=2, max_size=6),
    st.integers(0, 2**16),
)
def test_logits_do_not_depend_on_what_is_known(
    model: Model, calls: list[tuple[int, int, bool]], room: int
) -> None:
    graph = model._engine.graph
    memory = PrefixMemory(room * 100, block_tokens=16)
    for shared, new, remember in calls:
        tokens = np.array(PROMPT[:shared] + PROMPT[-new:])
        logits, cached = Prompt(tokens, memory, remember=remember).read_into(OnnxSession(graph))
        assert cached <= max(len(tokens) - 2, 0)
        half = graph.cache_layout.dtype == np.float16
        expected = OnnxSession(graph).forward(tokens)[-1]
        np.testing.assert_allclose(logits, expected, atol=0.02 if half else 2e-5)


@pytest.mark.parametrize("limit", [-1, 1.5, "64 MB", True])
def test_a_bound_that_is_no_number_of_bytes_is_refused(folder: Path, limit: Any) -> None:
    with pytest.raises(GenerationError, match=r"prefix_memory is .*; valid: None, 0 for none, or a number"):
        load(folder, prefix_memory=limit)
