"""Several answers read together are those that are read alone, whatever the order and however they end."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtool_runtime import Model, load
from qtool_runtime.batch import Batch
from qtool_runtime.batch_session import BatchSession
from qtool_runtime.engine import Cancelled
from qtool_runtime.errors import ContextLimitError, GenerationError
from qtool_runtime.graph import LoadedGraph
from qtool_runtime.session import OnnxSession
from support.kernels import require_int8_kv_cache

from .decoder_graphs import TinyDecoder, open_tiny, write_artifact

PROMPTS = ["the cat", "где был там the café on the mat", "x", "今天天气很好 😀", "the mat sat on the cat the"]


KINDS = {
    "in_place": TinyDecoder(context=700),
    "in_place_int8": TinyDecoder(context=700, int8_cache=True),
    "concatenate": TinyDecoder(update="concatenate", context=700),
}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory, tokenizer_json: bytes, engine: str):
    """The last kind and the other engine cannot read sequences together; they give the same answers."""
    folder, decoder = tmp_path_factory.mktemp(request.param), KINDS[request.param]
    if decoder.int8_cache:
        require_int8_kv_cache(engine)
    write_artifact(folder, decoder, {"tokenizer.json": tokenizer_json})
    with load(folder, threads=1, engine=engine) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> LoadedGraph:
    return open_tiny(tmp_path_factory.mktemp("graph"), TinyDecoder())


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each common pass extended."""
    counts: list[int] = []
    step = Batch.step

    def counted(self: Batch) -> None:
        counts.append(self.waiting())
        step(self)

    monkeypatch.setattr(Batch, "step", counted)
    return counts


def alone(model: Model, prompts=PROMPTS, **options) -> list[tuple[int, ...]]:
    streams = [model.generate(prompt, **options) for prompt in prompts]
    return [(stream.read(), stream.token_ids)[1] for stream in streams]


def reads_together(model: Model) -> bool:
    return isinstance(model._sessions(2)(), BatchSession)


# Through the application's calls


@pytest.mark.parametrize("at_once", [1, 2, 4, 8])
def test_answers_are_those_of_single_runs(model: Model, at_once: int) -> None:
    options = {"max_tokens": 25, "ignore_eos": True}
    answers = model.generate_batch(PROMPTS, at_once=at_once, **options)
    texts = answers.read()
    assert [stream.token_ids for stream in answers] == alone(model, **options)
    assert texts == [stream.text for stream in answers]
    assert all(stream.stop_reason == "length" for stream in answers)


def test_one_pass_serves_all(model: Model, passes: list[int]) -> None:
    model.generate_batch(PROMPTS[:4], max_tokens=20, ignore_eos=True).read()
    assert passes.count(4) == (19 if reads_together(model) else 0)  # the first token comes with the prompt


def test_sampling_ends_and_growth(model: Model) -> None:
    """Answers that end at different times, across two steps of growth of the cache."""
    options = {"temperature": 0.8, "seed": 3, "stop": ["e"], "max_tokens": 300, "presence_penalty": 0.1}
    prompts = [*PROMPTS, list(range(5, 250)), list(range(9, 200))]
    answers = model.generate_batch(prompts, at_once=3, **options)
    answers.read()
    assert [stream.token_ids for stream in answers] == alone(model, prompts, **options)
    assert len({len(stream.token_ids) for stream in answers}) > 2
    options = {"max_tokens": 300, "ignore_eos": True}
    answers = model.generate_batch(prompts, at_once=4, **options)
    answers.read()
    assert [stream.token_ids for stream in answers] == alone(model, prompts, **options)


def test_pieces_come_with_the_number_of_their_answer(model: Model) -> None:
    answers = model.generate_batch(PROMPTS, max_tokens=8, ignore_eos=True)
    texts = [""] * len(PROMPTS)
    for index, piece in answers.pieces():
        texts[index] += piece
    assert texts == [stream.text for stream in answers]
    assert all(texts)


def test_streams_may_be_read_in_any_order_or_left(model: Model) -> None:
    options = {"max_tokens": 12, "ignore_eos": True}
    expected = alone(model, **options)
    answers = model.generate_batch(PROMPTS, **options)
    for _ in range(3):
        answers.step()
    answers[1].close()
    answers[4].read()
    answers[0].step()
    del_index = [0, 2, 3, 4]
    answers.read()
    assert [answers[index].token_ids for index in del_index] == [expected[index] for index in del_index]
    assert answers[1].stop_reason == "cancelled"


def test_candidates_are_read_together(model: Model, passes: list[int]) -> None:
    options = {"temperature": 0.9, "seed": 5, "max_tokens": 15, "ignore_eos": True}
    one_by_one = [stream.read() for stream in model.generate("the", candidates=4, **options).candidates]
    before = len(passes)
    candidates = model.generate("the", candidates=4, **options).candidates
    assert candidates.read() == one_by_one
    assert len(passes) - before == (14 if reads_together(model) else 0)


def test_in_threads(model: Model) -> None:
    options = {"max_tokens": 30, "ignore_eos": True}
    answers = model.generate_batch(PROMPTS, **options)
    threads = [threading.Thread(target=stream.read) for stream in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [stream.token_ids for stream in answers] == alone(model, **options)


def test_a_cancelled_answer_leaves_the_others(model: Model) -> None:
    options = {"max_tokens": 20, "ignore_eos": True}
    answers = model.generate_batch(PROMPTS[:3], **options)
    for _ in range(4):
        answers.step()
    answers[1].cancel()
    answers.read()
    assert [stream.stop_reason for stream in answers] == ["length", "cancelled", "length"]
    assert len(answers[1].token_ids) == 4
    expected = alone(model, PROMPTS[:3], **options)
    assert (answers[0].token_ids, answers[2].token_ids) == (expected[0], expected[2])


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "there are no prompts"),
        (["a"], {"at_once": 0}, "at_once is 0; valid: 1 to 64"),
        (["a", "b"], {"candidates": 2, "temperature": 1.0}, "candidates is 2 for each of 2 prompts"),
        (["a", ""], {}, "the prompt has no tokens"),
        (["a", [1] * 700], {}, "together at most 700 fit"),
    ],
)
def test_bad_batches(model: Model, prompts, options: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        model.generate_batch(prompts, **options)


# Async


def test_an_answer_comes_without_blocking_the_event_loop(model: Model) -> None:
    expected = model.generate("the cat", max_tokens=20, ignore_eos=True).read()

    async def run() -> tuple[list[str], int]:
        ticks, done = 0, asyncio.Event()

        async def tick() -> None:
            nonlocal ticks
            while not done.is_set():
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        pieces = [piece async for piece in model.generate("the cat", max_tokens=20, ignore_eos=True)]
        done.set()
        await ticker
        return pieces, ticks

    pieces, ticks = asyncio.run(run())
    assert "".join(pieces) == expected
    assert ticks > 5


def test_several_answers_at_the_same_time(model: Model) -> None:
    options = {"max_tokens": 20, "ignore_eos": True}

    async def run() -> list[str]:
        return await asyncio.gather(*(model.generate(prompt, **options).read_async() for prompt in PROMPTS))

    assert asyncio.run(run()) == [model.generate(prompt, **options).read() for prompt in PROMPTS]

    async def batch() -> list[str]:
        answers = model.generate_batch(PROMPTS, **options)
        async for _ in answers.events_async():
            pass
        return [stream.text for stream in answers]

    assert asyncio.run(batch()) == asyncio.run(run())


def test_a_cancelled_task_ends_its_answer(model: Model) -> None:
    async def run():
        stream = model.generate("the", max_tokens=600, ignore_eos=True)
        task = asyncio.create_task(stream.read_async())
        while len(stream.token_ids) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream

    stream = asyncio.run(run())
    assert stream.stop_reason == "cancelled"
    assert 3 <= len(stream.token_ids) < 600


# The sessions themselves


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_course_gives_the_logits_of_sessions_alone(graph: LoadedGraph, data: st.DataObject) -> None:
    """Sequences read, announce, keep or break their word, go back and leave, in any order."""
    batch = Batch(graph, 2)
    pairs: list[tuple[BatchSession, OnnxSession]] = []
    tokens = st.integers(0, 299)
    for _ in range(data.draw(st.integers(3, 25))):
        action = data.draw(st.sampled_from(["join", "read", "read", "read", "announce", "truncate", "leave"]))
        if action == "join" or not pairs:
            pairs.append((BatchSession(batch), OnnxSession(graph)))
            action = "read"
        session, reference = data.draw(st.sampled_from(pairs))
        if action == "read":
            announced = session._announced if session._ready is None else session._last
            count = data.draw(st.integers(1, 4))
            chunk = data.draw(st.lists(tokens, min_size=count, max_size=count))
            if announced is not None and data.draw(st.booleans()):
                chunk = [announced]
            if reference.length + len(chunk) <= reference.context:
                rows = data.draw(st.integers(1, len(chunk)))
                found = session.forward(chunk, rows)
                np.testing.assert_allclose(found, reference.forward(chunk, rows), atol=2e-5)
        elif action == "announce":
            session.announce(data.draw(tokens))
        elif action == "truncate":
            length = data.draw(st.integers(0, reference.length))
            session.truncate(length)
            reference.truncate(length)
        else:
            session.close()
            pairs.remove((session, reference))
    for session, _ in pairs:
        session.close()
    assert not any(buffer.size for buffer in batch.buffers)


def test_a_full_sequence_is_left_as_it_is(graph: LoadedGraph, prompt: np.ndarray) -> None:
    batch, tokens = Batch(graph), np.resize(prompt, 128)
    full, other, third = (BatchSession(batch) for _ in range(3))
    full.forward(tokens)
    before = full.snapshot()
    for session in (other, third):
        session.forward([1, 2])
    full.announce(5)
    for token in (3, 4, 5):
        for session in (other, third):
            session.announce(token)
        for session in (other, third):
            session.forward([token])
    for found, expected in zip(full.snapshot(), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ContextLimitError):
        full.forward([5])


def test_snapshots_go_from_one_sequence_to_another(graph: LoadedGraph, prompt: np.ndarray) -> None:
    batch = Batch(graph)
    first, second = BatchSession(batch), BatchSession(batch)
    expected = first.forward(prompt[:50]).copy()
    first.truncate(49)
    second.restore([first.snapshot()])
    np.testing.assert_allclose(second.forward(prompt[49:50]), expected, atol=2e-5)


def test_closed_and_cancelled_sequences(graph: LoadedGraph) -> None:
    batch = Batch(graph)
    session = BatchSession(batch)
    session.forward([1])
    session.cancel()
    with pytest.raises(Cancelled):
        session.forward([2])
    session.close()
    session.close()
    with pytest.raises(GenerationError, match="closed"):
        session.forward([2])


def test_a_forgotten_stream_gives_its_row_back(tmp_path: Path, tokenizer_json: bytes) -> None:
    write_artifact(tmp_path, TinyDecoder(), {"tokenizer.json": tokenizer_json})
    with load(tmp_path, threads=1) as model:
        answers = model.generate_batch(["a", "b"], max_tokens=50, ignore_eos=True)
        answers.step()
        batch = answers[0]._session._batch
        assert len(batch._members) == 2
        del answers
        assert len(batch._members) == 0


def test_every_answer_counts_the_passes_that_served_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: dict[BatchSession, float] = {}
    receive = BatchSession.receive

    def recorded(self: BatchSession, logits: np.ndarray, seconds: float) -> None:
        passes[self] = passes.get(self, 0.0) + seconds
        receive(self, logits, seconds)

    monkeypatch.setattr(BatchSession, "receive", recorded)
    answers = model.generate_batch(PROMPTS[:3], max_tokens=40, ignore_eos=True)
    answers.read()
    if not passes:
        pytest.skip("this engine or graph reads every sequence alone")
    for stream, seconds in zip(answers, passes.values(), strict=True):
        assert stream.stats.decode_seconds >= seconds > 0
