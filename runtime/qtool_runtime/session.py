"""One sequence of tokens in progress, over ONNX Runtime: its KV cache, and forward passes that extend it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.compatibility import import_onnxruntime
from qtool_runtime.engine import Cancelled, DeadlinePassed
from qtool_runtime.errors import GenerationError
from qtool_runtime.graph import LoadedGraph
from qtool_runtime.kv_cache import KvCache, Snapshot, check_room, new_cache
from qtool_runtime.sole_use import SoleUse


class OnnxSession:
    """A session (see `engine.Session`) over ONNX Runtime.

    Args:
        graph: the loaded model file.
        cache: where keys and values go; None for a cache of its own.
    """

    def __init__(self, graph: LoadedGraph, cache: KvCache | None = None) -> None:
        runtime = import_onnxruntime()
        self._graph = graph
        self.deadline: float | None = None
        self._closed = False
        self._sole_use = SoleUse("session")
        self._damaged = False
        self._cache = cache or new_cache(graph.cache_layout, graph.capacity)
        self._binding: Any = graph.inference.io_binding()
        self._run_options = runtime.RunOptions()
        self._cancelled = threading.Event()
        self._logits: NDArray[Any] = np.empty((1, 1, graph.vocab_size), graph.logits_dtype)
        self._logits_value = runtime.OrtValue.ortvalue_from_numpy(self._logits)
        self._rows = np.zeros(1, np.int64)
        self._rows_value = runtime.OrtValue.ortvalue_from_numpy(self._rows)
        self._bound_rows = 0

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self._cache.length

    @property
    def context(self) -> int:
        """Most tokens this session can hold."""
        return self._graph.context

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self._cache.bytes

    @property
    def row_limit(self) -> int:
        """As many as one run reads tokens."""
        return self._graph.prefill_chunk

    @property
    def seconds_ahead(self) -> float:
        """Nothing is read before it is asked for."""
        return 0.0

    def forward(self, token_ids: Sequence[int] | NDArray[np.int64], rows: int = 1) -> NDArray[np.float32]:
        """Reads tokens, in chunks, so that memory does not grow with the prompt; see `engine.Session`."""
        with self._sole_use:
            return self._forward(np.ascontiguousarray(token_ids, np.int64).reshape(1, -1), rows)

    def check(self) -> None:
        """Refuses a forward pass that should not begin.

        Raises:
            Cancelled: `cancel` was called.
            DeadlinePassed: the time is up.
            GenerationError: the session is closed.
        """
        if self._closed:
            raise GenerationError("the session is closed", hint="Start another generation.")
        if self._cancelled.is_set():
            raise Cancelled("the generation was cancelled")
        if self.deadline is not None and time.perf_counter() >= self.deadline:
            raise DeadlinePassed("the time for this generation is up")

    def announce(self, token_id: int) -> None:
        """Nothing to prepare: a session reads alone."""

    def truncate(self, length: int) -> None:
        """Forgets all tokens after the first `length`.

        Raises:
            GenerationError: fewer tokens than that have been read.
        """
        self._cache.truncate(length)

    def snapshot(self, start: int = 0, stop: int | None = None) -> Snapshot | None:
        """Returns a copy of the keys and values of tokens [start, stop), by default to the last one."""
        return None if self._damaged else self._cache.snapshot(start, self.length if stop is None else stop)

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Replaces what was read by the tokens of snapshots, one behind the other."""
        self._cache.restore(self._binding, snapshots)

    def close(self) -> None:
        """Frees the KV cache. Closing twice does nothing."""
        self._closed = True
        self._binding = None
        self._cache = new_cache(self._graph.cache_layout, self._graph.capacity)

    def cancel(self) -> None:
        """Stops a forward pass that runs in another thread, and refuses further ones."""
        self._cancelled.set()
        self._run_options.terminate = True

    def _forward(self, tokens: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
        """Reads tokens of shape (1, count), and returns the last rows of logits."""
        self.check()
        count = tokens.shape[1]
        if not 1 <= rows <= count:
            raise GenerationError(f"{rows} rows of logits were asked for {count} tokens; valid: 1 to {count}")
        check_room(self.length, count, self.context)
        self._cache.reserve(self._binding, count + self._graph.row_multiple - 1)
        kept = []
        limit = self._graph.prefill_chunk
        if self._graph.reads_one_behind_others:
            limit = 1 if self.length else count
        for start, end in _chunks(count, limit):
            self.check()
            wanted = min(rows - (count - end), end - start)
            logits = self._read(tokens[:, start:end], max(wanted, 1))
            if wanted > 0:
                kept.append(logits.copy() if end < count else logits)
        return kept[0] if len(kept) == 1 else np.concatenate(kept)

    def _read(self, tokens: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
        """Reads tokens of shape (1, count) in one run, and returns the last rows of logits.

        What is missing to a multiple of rows is filled in behind the last token, where nothing sees it, and
        its keys and values are forgotten. The LM head gets a multiple of rows, too.
        """
        multiple = self._graph.row_multiple
        if multiple == 1:
            return self._run(tokens, rows)
        missing = -tokens.shape[1] % multiple
        rows_run = rows + missing + -(rows + missing) % multiple
        logits = self._run(np.pad(tokens, ((0, 0), (0, missing)), mode="edge"), rows_run)
        if missing:
            self._cache.truncate(self.length - missing)
        return logits[rows_run - missing - rows : rows_run - missing]

    def _run(self, tokens: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
        """Runs the graph once over `tokens` of shape (1, count), and returns (rows, vocab_size)."""
        graph, count = self._graph, tokens.shape[1]
        start, total = self.length, self.length + count
        self._cache.bind(self._binding)
        self._binding.bind_cpu_input("input_ids", np.ascontiguousarray(tokens))
        self._binding.bind_cpu_input("attention_mask", graph.attention_mask[:, :total])
        if graph.takes_positions:
            self._binding.bind_cpu_input("position_ids", graph.positions[:, start:total])
        self._bind_logits(rows if graph.logits_rows_input else count)
        try:
            graph.inference.run_with_iobinding(self._binding, self._run_options)
        except Exception as error:  # ONNX Runtime's errors share no other base
            # Before 1.27, a failed run also frees what the run before it returned: nobody may copy that.
            self._damaged = graph.cache_layout.update == "concatenate"
            if self._cancelled.is_set():
                raise Cancelled("the generation was cancelled") from None
            raise GenerationError(f"onnxruntime failed on tokens {start} to {total}: {error}") from error
        self._cache.commit(self._binding, count)
        produced = self._logits if self._bound_rows == 1 else self._binding.get_outputs()[-1].numpy()
        return produced[0, -rows:].astype(np.float32, copy=False)

    def _bind_logits(self, rows: int) -> None:
        """Binds the output for `rows` rows; one row goes to our own buffer, and stays bound.

        ONNX Runtime refuses a buffer of another shape than the declared (1, 1, vocab_size), so it has to
        allocate more rows itself, anew for each run.
        """
        if rows == self._bound_rows == 1:
            return
        if self._graph.logits_rows_input:
            self._rows[0] = rows
            self._binding.bind_ortvalue_input(self._graph.logits_rows_input, self._rows_value)
        if rows == 1:
            self._binding.bind_ortvalue_output("logits", self._logits_value)
        else:
            self._binding.bind_output("logits", "cpu")
        self._bound_rows = rows


def _chunks(count: int, limit: int) -> Iterator[tuple[int, int]]:
    """Cuts `count` tokens into pieces of at most `limit`, and yields where each starts and ends.

    The last one does not have a single token if that can be helped: kernels for one token round otherwise, so
    that the same prompt would give other keys and values when a part of it is known.
    """
    start = 0
    while start < count:
        size = min(limit, count - start)
        if count - start - size == 1 and size > 2:
            size -= 1
        yield start, start + size
        start += size
