"""The session in values: however tokens are fed and cached, the logits are those of one uncached pass."""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtool_runtime import kv_cache
from qtool_runtime.engine import Cancelled
from qtool_runtime.errors import ContextLimitError, GenerationError
from qtool_runtime.graph import LoadedGraph
from qtool_runtime.session import OnnxSession
from support.kernels import require_int8_kv_cache

from .decoder_graphs import TinyDecoder, open_tiny

KINDS = {
    "in_place": TinyDecoder(),
    "in_place_half": TinyDecoder(half=True),
    "in_place_int8": TinyDecoder(int8_cache=True),
    "concatenate": TinyDecoder(update="concatenate"),
    "concatenate_all_logits": TinyDecoder(update="concatenate", logits_rows=False),
}
TOLERANCE = {"in_place_half": 0.02, "in_place_int8": 0.05}
"""Largest difference of logits of about 20: 2e-5 for float32 sums in another order, more for float16, and for
int8 where that turns a value that lies between two steps the other way."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def graph(kind: str, tmp_path_factory: pytest.TempPathFactory) -> LoadedGraph:
    if KINDS[kind].int8_cache:
        require_int8_kv_cache()
    return open_tiny(tmp_path_factory.mktemp(kind), KINDS[kind])


@pytest.fixture(scope="module")
def whole(graph: LoadedGraph, prompt: np.ndarray) -> np.ndarray:
    """Logits of every position, from one pass over an empty cache."""
    return OnnxSession(graph).forward(prompt, rows=len(prompt)).copy()


@pytest.fixture(scope="module")
def close(kind: str):
    return lambda found, expected: np.testing.assert_allclose(found, expected, atol=TOLERANCE.get(kind, 2e-5))


def test_both_kinds_of_cache_give_the_same_logits(tmp_path: Path, prompt: np.ndarray) -> None:
    graphs = [open_tiny(tmp_path / update, TinyDecoder(update=update)) for update in kv_cache.CACHES]
    in_place, concatenated = (OnnxSession(graph).forward(prompt, rows=100) for graph in graphs)
    np.testing.assert_allclose(in_place, concatenated, atol=2e-5)
    assert np.ptp(in_place) > 5  # the comparison would pass on zeros


def test_cached_decode_equals_uncached_prefill(graph, prompt, whole, close) -> None:
    session = OnnxSession(graph)
    for position, token in enumerate(prompt):
        close(session.forward([token])[0], whole[position])
    assert session.length == 100


def test_logits_are_float32_rows_counted_from_the_end(graph, prompt, whole, close) -> None:
    for rows in (1, 2, 99, 100):
        logits = OnnxSession(graph).forward(prompt, rows=rows)
        assert logits.shape == (rows, 300)
        assert logits.dtype == np.float32
        close(logits, whole[-rows:])


def test_row_count_may_change_from_call_to_call(graph, prompt, whole, close) -> None:
    session, position = OnnxSession(graph), 0
    for count, rows in ((10, 1), (1, 1), (8, 8), (8, 8), (1, 1), (20, 3), (1, 1)):
        position += count
        close(session.forward(prompt[position - count : position], rows), whole[position - rows : position])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(cuts=st.sets(st.integers(1, 99)), chunk=st.integers(1, 40), rows=st.integers(1, 100))
def test_chunks_and_pieces_change_nothing(graph, prompt, whole, close, cuts, chunk, rows) -> None:
    session = OnnxSession(replace(graph, prefill_chunk=chunk))
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 100], strict=True):
        count = min(rows, end - start)
        close(session.forward(prompt[start:end], count), whole[end - count : end])


def test_a_provider_that_reads_several_tokens_at_the_start_only(graph, prompt, whole, close) -> None:
    """The whole prompt in one run, however long, then one token a run; the logits are the same."""
    runs: list[int] = []

    class Watched(OnnxSession):
        def _run(self, tokens, rows):
            runs.append(tokens.shape[1])
            return super()._run(tokens, rows)

    session = Watched(replace(graph, prefill_chunk=16, reads_one_behind_others=True))
    close(session.forward(prompt[:40], 2), whole[38:40])
    close(session.forward(prompt[40:45], 3), whole[42:45])
    session.truncate(43)
    close(session.forward(prompt[43:46]), whole[45:46])
    session.truncate(0)
    close(session.forward(prompt[:20]), whole[19:20])
    assert runs == [40, 1, 1, 1, 1, 1, 1, 1, 1, 20]


def test_growing_changes_nothing(graph, prompt, whole, close, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "GROWTH_STEP", 8)
    session = OnnxSession(graph)
    close(session.forward(prompt[:5], 5), whole[:5])
    sizes = {session.cache_bytes}
    for position in range(5, 100):
        close(session.forward(prompt[position : position + 1])[0], whole[position])
        sizes.add(session.cache_bytes)
    assert len(sizes) > 10


def test_truncated_session_continues_like_a_fresh_one(graph, prompt, whole, close) -> None:
    session = OnnxSession(graph)
    session.forward(prompt[::-1])
    session.truncate(0)
    close(session.forward(prompt[:60], 60), whole[:60])
    session.forward(prompt[:30])
    session.truncate(50)
    assert session.length == 50
    close(session.forward(prompt[50:], 50), whole[50:])
    with pytest.raises(GenerationError, match="101 tokens; the cache holds 100"):
        session.truncate(101)
    with pytest.raises(GenerationError, match="-1 tokens"):
        session.truncate(-1)


def test_a_restored_snapshot_continues_like_the_original(graph, prompt, whole, close) -> None:
    session = OnnxSession(graph)
    session.forward(prompt[:60])
    later = session.snapshot(25)
    assert {(part.dtype, part.shape) for part in later} == {(graph.cache_layout.dtype, (1, 2, 35, 16))}
    session.truncate(25)
    first = session.snapshot()
    other = OnnxSession(graph)
    other.restore([first, later])
    session.forward(prompt[::-1])  # what comes after a snapshot does not change it
    close(other.forward(prompt[60:], 40), whole[60:])


def test_sessions_over_one_graph_are_independent(graph, prompt, whole, close) -> None:
    """Interleaved, and at the same time from several threads."""
    sessions = [OnnxSession(graph) for _ in range(4)]
    found: dict[int, np.ndarray] = {}

    def read(index: int) -> None:
        rows = [sessions[index].forward([token])[0].copy() for token in np.roll(prompt, index)]
        found[index] = np.array(rows)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close(found[0], whole)
    for index in range(1, 4):
        close(found[index], OnnxSession(graph).forward(np.roll(prompt, index), rows=100))


def test_context_limit_is_checked_before_any_work(graph, prompt, whole, close) -> None:
    session = OnnxSession(graph)
    session.forward(prompt)
    with pytest.raises(ContextLimitError, match=r"100 tokens are cached and 29 more would pass .* 128"):
        session.forward(prompt[:29])
    assert session.length == 100
    session.forward(prompt[:28])
    assert session.length == 128
    with pytest.raises(ContextLimitError):
        session.forward([1])
    session.truncate(60)
    close(session.forward(prompt[60:], 40), whole[60:])


def test_buffers_never_pass_the_context(graph, prompt) -> None:
    session = OnnxSession(graph)
    session.forward(np.concatenate([prompt, prompt[:28]]))
    assert session.cache_bytes == 128 * graph.cache_layout.bytes_per_token


@pytest.mark.parametrize("rows", [0, -1, 6])
def test_rows_outside_the_tokens_are_refused(graph, prompt, rows: int) -> None:
    with pytest.raises(GenerationError, match=f"{rows} rows .* valid: 1 to 5"):
        OnnxSession(graph).forward(prompt[:5], rows)


def test_no_token_is_refused(graph) -> None:
    with pytest.raises(GenerationError, match="0 tokens"):
        OnnxSession(graph).forward([])


def test_closed_session_frees_its_cache(graph, prompt) -> None:
    session = OnnxSession(graph)
    session.forward(prompt)
    cache = weakref.ref(session._cache)
    session.close()
    session.close()
    assert cache() is None
    assert session.cache_bytes == 0
    with pytest.raises(GenerationError, match="closed"):
        session.forward([1])


def test_cancelled_session_runs_no_more(graph, prompt) -> None:
    session = OnnxSession(graph)
    session.forward(prompt)
    session.cancel()
    with pytest.raises(Cancelled):
        session.forward([1])
    assert session.length == 100


def test_cancel_stops_a_long_prompt_in_another_thread(tmp_path: Path) -> None:
    graph = replace(open_tiny(tmp_path, TinyDecoder(context=4000)), prefill_chunk=1)
    session, outcome = OnnxSession(graph), []

    def read() -> None:
        try:
            session.forward(np.zeros(4000, np.int64))
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    while session.length < 10 and thread.is_alive():
        pass
    session.cancel()
    thread.join()
    assert len(outcome) == 1
    assert 10 <= session.length < 4000


def test_failed_run_leaves_the_session_usable(graph, prompt, whole, close) -> None:
    onnxruntime_version = tuple(int(part) for part in version("onnxruntime").split(".")[:2])
    if graph.cache_layout.update == "concatenate" and onnxruntime_version < (1, 27):
        pytest.skip("before 1.27, a failed run of onnxruntime also frees what the run before it returned")
    session = OnnxSession(graph)
    session.forward(prompt[:50])
    with pytest.raises(GenerationError, match="onnxruntime failed on tokens 50 to 51"):
        session.forward([10**9])  # no such row in the embedding
    close(session.forward(prompt[50:], 50), whole[50:])
