"""What is counted of a model's answers, and the hook that an application gives."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool_runtime import Model, load, metrics
from qtool_runtime.errors import GenerationError
from qtool_runtime.generate import GenerationResult
from qtool_runtime.metrics import Distribution, Metrics

PROMPT = "the cat sat on the"


@pytest.fixture
def results() -> list[GenerationResult]:
    return []


@pytest.fixture
def model(artifact: Path, results: list[GenerationResult], engine: str):
    """A model of this test's own, for its counts start at nothing."""
    with load(artifact, threads=1, engine=engine, on_answer=results.append) as loaded:
        yield loaded


def answer(model: Model, tokens: int, **options) -> GenerationResult:
    stream = model.generate(PROMPT, max_tokens=tokens, ignore_eos=True, **options)
    stream.read()
    return stream.stats


def test_summary_adds_up_what_the_answers_say(model: Model) -> None:
    empty = model.metrics.summary()
    assert (empty.answers, empty.stop_reasons, empty.peak_cache_bytes) == (0, {}, 0)
    assert empty.decode_rate == Distribution()
    found = [answer(model, count) for count in (1, 5, 30)]
    with pytest.raises(GenerationError):
        model.generate(PROMPT, max_tokens=0)  # refused: no answer
    summary = model.metrics.summary()
    assert (summary.answers, summary.stop_reasons) == (3, {"length": 3})
    assert summary.prompt_tokens == 3 * found[0].prompt_tokens
    assert summary.cached_tokens == sum(each.cached_tokens for each in found)
    assert summary.answer_tokens == 36
    assert summary.time_to_first_token == Distribution.of([each.time_to_first_token for each in found])
    assert summary.prefill_rate == Distribution.of([each.prefill_rate for each in found])
    assert summary.decode_rate == Distribution.of([each.decode_rate for each in found[1:]])
    assert summary.decode_rate.count == 2  # the answer of one token has none


def test_drafts_are_added_up(model: Model) -> None:
    options = {"logit_bias": {77: 100}, "speculate": True}  # an answer that repeats itself
    found = [answer(model, 30, **options) for _ in range(2)]
    summary = model.metrics.summary()
    assert summary.drafted_tokens == sum(each.drafted_tokens for each in found)
    assert summary.accepted_tokens == sum(each.accepted_tokens for each in found)
    assert summary.accepted_tokens > 10 or model.new_session().row_limit == 1


def test_every_end_counts_once_with_its_reason(model: Model, results: list[GenerationResult]) -> None:
    answer(model, 3)
    answer(model, 100, stop_ids=range(300))
    answer(model, 100, deadline=1e-9)
    with model.generate(PROMPT) as stream:
        next(stream)
    stream = model.generate(PROMPT)
    next(stream)
    del stream  # forgotten
    cancelled = model.generate(PROMPT)
    cancelled.cancel()
    cancelled.read()
    reasons = ["length", "stop", "deadline", "cancelled", "cancelled", "cancelled"]
    assert [result.stop_reason for result in results] == reasons
    assert model.metrics.summary().stop_reasons == {"length": 1, "stop": 1, "deadline": 1, "cancelled": 3}


def test_an_answer_that_never_began_does_not_count(model: Model, results: list[GenerationResult]) -> None:
    model.generate(PROMPT).close()
    stream = model.generate(PROMPT)
    del stream  # forgotten
    assert (results, model.metrics.summary().answers) == ([], 0)


def test_each_candidate_is_an_answer(model: Model, results: list[GenerationResult]) -> None:
    for stream in model.generate(PROMPT, candidates=3, temperature=1.0, max_tokens=2).candidates:
        stream.read()
    assert len(results) == model.metrics.summary().answers == 3


def test_cache_bytes_now_and_at_most(model: Model) -> None:
    each = answer(model, 2).cache_bytes
    assert each > 0
    model.metrics.reset()
    streams = [model.generate(PROMPT, max_tokens=2, ignore_eos=True) for _ in range(3)]
    assert model.metrics.summary().cache_bytes == 0
    for stream in streams:
        stream.step()
        stream.step()
    assert model.metrics.summary().cache_bytes == 3 * each
    for stream in streams:
        stream.close()
    summary = model.metrics.summary()
    assert (summary.cache_bytes, summary.peak_cache_bytes) == (0, 3 * each)
    model.metrics.reset()
    answer(model, 2)
    assert model.metrics.summary().peak_cache_bytes == each
    session = model.new_session()  # one of the application's own
    session.forward([1])
    assert model.metrics.summary().cache_bytes == session.cache_bytes > 0
    del session
    assert model.metrics.summary().cache_bytes == 0


def test_reset_forgets_the_past(model: Model) -> None:
    answer(model, 5)
    model.metrics.reset()
    assert model.metrics.summary().to_dict() == Metrics(model.kernels.name).summary().to_dict()


def test_summary_is_json_data(model: Model) -> None:
    answer(model, 5)
    document = model.metrics.summary().to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["time_to_first_token"]["count"] == 1


def test_times_are_of_the_latest_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "WINDOW", 10)
    counted = Metrics("onnxruntime")
    for seconds in range(1, 101):
        counted.add(GenerationResult(stop_reason="eos", prompt_tokens=5, prefill_seconds=float(seconds)))
    summary = counted.summary()
    assert (summary.answers, summary.prompt_tokens) == (100, 500)
    first = summary.time_to_first_token
    assert (first.count, first.minimum, first.mean, first.maximum) == (10, 91, 95.5, 100)
    assert (first.p50, first.p90, first.p99) == (95, 99, 100)


@given(values=st.lists(st.floats(1e-6, 1e6), min_size=1))
def test_percentiles_are_numpys_nearest_ranks(values: list[float]) -> None:
    found = Distribution.of(values)
    expected = np.percentile(values, (50, 90, 99), method="inverted_cdf")
    np.testing.assert_allclose([found.p50, found.p90, found.p99], expected)
    assert found.minimum == min(values) <= found.p50 <= found.p90 <= found.p99 <= found.maximum == max(values)
    assert found.mean == pytest.approx(np.mean(values))


def test_answers_end_in_several_threads(model: Model, results: list[GenerationResult]) -> None:
    def work() -> None:
        for _ in range(25):
            answer(model, 2)
            model.metrics.summary()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary = model.metrics.summary()
    assert (summary.answers, summary.answer_tokens, len(results)) == (100, 200, 100)


def test_counting_costs_less_than_20_microseconds() -> None:
    counted, result = (
        Metrics("onnxruntime"),
        GenerationResult(prompt_tokens=9, stop_reason="eos", prefill_seconds=0.1),
    )
    best = 1.0
    for _ in range(50):
        started = time.perf_counter()
        for _ in range(20):
            counted.add(result)
        best = min(best, (time.perf_counter() - started) / 20)
    assert best < 20e-6


# The hook


def test_hook_is_told_in_the_thread_that_ended_the_answer(artifact: Path) -> None:
    told: list[tuple[int, GenerationResult, int]] = []

    def note(result: GenerationResult) -> None:
        told.append((threading.get_ident(), result, model.metrics.summary().answers))

    with load(artifact, threads=1, on_answer=note) as model:
        stream = model.generate(PROMPT, max_tokens=4, ignore_eos=True)
        thread = threading.Thread(target=stream.read)
        thread.start()
        thread.join()
    assert told == [(thread.ident, stream.stats, 1)]
    assert (told[0][1].stop_reason, len(told[0][1].token_ids)) == ("length", 4)


def test_a_failing_hook_is_logged_and_the_answer_goes_on(
    artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(result: GenerationResult) -> None:
        raise ValueError("the log server is down")

    with load(artifact, threads=1, on_answer=fail) as model, caplog.at_level(logging.ERROR, "qtool_runtime"):
        stream = model.generate(PROMPT, max_tokens=4, ignore_eos=True)
        assert stream.read()
    assert stream.stop_reason == "length"
    assert stream._session.cache_bytes == 0
    assert "the log server is down" in caplog.text


def test_ctrl_c_in_a_hook_is_not_swallowed(artifact: Path) -> None:
    def interrupt(result: GenerationResult) -> None:
        raise KeyboardInterrupt

    with load(artifact, threads=1, on_answer=interrupt) as model:
        stream = model.generate(PROMPT, max_tokens=4, ignore_eos=True)
        with pytest.raises(KeyboardInterrupt):
            stream.read()
    assert stream._session.cache_bytes == 0


def test_a_hook_that_is_no_function_is_refused(artifact: Path) -> None:
    with pytest.raises(GenerationError, match="on_answer is 5; valid: None, or a function"):
        load(artifact, on_answer=5)  # type: ignore[arg-type]
