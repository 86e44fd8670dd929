"""Several sequences of different lengths, which one forward pass extends by a token each.

Reading the weights is most of what a token costs, and one pass reads them once for all sequences. The keys
and values of all lie in common buffers, a row for each sequence. A prompt is read alone, into its own row.
From then on the tokens that sequences have announced are read together, when the first of them is asked for
its logits; the others find theirs ready. Nobody has to keep step: who does not, only gains less.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.compatibility import import_onnxruntime
from qtool_runtime.errors import GenerationError
from qtool_runtime.graph import LoadedGraph
from qtool_runtime.kv_cache import GROWTH_STEP

if TYPE_CHECKING:
    from qtool_runtime.batch_session import BatchSession


class Batch:
    """The common buffers, and the pass over all sequences.

    Args:
        graph: a loaded model file that updates its cache in place, in host memory.
        rows: sequences to make room for at once; there may be more.
    """

    def __init__(self, graph: LoadedGraph, rows: int = 1) -> None:
        self.graph = graph
        self._expected = rows
        self.lock = threading.RLock()
        self.buffers: list[NDArray[Any]] = []
        self.version = 0
        """Counts changes of the buffers: views of an earlier version have to be taken anew."""
        self._members: list[BatchSession] = []
        self._capacity = 0
        self._bound: tuple[int, int] | None = None
        self._binding: Any = graph.inference.io_binding()
        self._logits: NDArray[Any] = np.empty((0, 1, graph.vocab_size), graph.logits_dtype)

    def join(self, session: BatchSession) -> int:
        """Gives a sequence the next row, and returns its number."""
        with self.lock:
            self._members.append(session)
            self._resize(max(len(self._members), self._rows, self._expected), self._capacity)
            return len(self._members) - 1

    def leave(self, session: BatchSession) -> None:
        """Takes a row back. The last sequence moves there, so that rows in use stay side by side."""
        with self.lock:
            if session not in self._members:
                return
            row, last = self._members.index(session), self._members.pop()
            if last is not session:
                self._members[row] = last
                for buffer in self.buffers:
                    buffer[row, :, : last.length] = buffer[len(self._members), :, : last.length]
                last.cache.move(row)
            if not self._members:
                self._resize(0, 0)

    def reserve(self, tokens: int) -> None:
        """Makes room for sequences of so many tokens."""
        if tokens > self._capacity:
            steps = -(-tokens // GROWTH_STEP) * GROWTH_STEP
            self._resize(self._rows, min(steps, self.graph.capacity))

    def step(self) -> None:
        """Reads the announced tokens of all sequences that wait for logits, in one pass.

        The pass takes all rows in use. One that has nothing to read gets its last token again, at the place
        of its next one, which will overwrite it (or where the context is full, at its own place).

        Raises:
            GenerationError: onnxruntime failed.
        """
        graph, members, binding = self.graph, self._members, self._binding
        positions = np.array([min(member.length, graph.context - 1) for member in members])
        total = int(positions.max()) + 1
        self.reserve(total)
        self._bind(len(members))
        binding.bind_cpu_input("input_ids", np.array([[member.feed] for member in members], np.int64))
        attended = np.arange(total) <= positions[:, None]
        binding.bind_cpu_input("attention_mask", attended.astype(np.int64))
        if graph.takes_positions:
            binding.bind_cpu_input("position_ids", positions[:, None].astype(np.int64))
        started = time.perf_counter()
        try:
            graph.inference.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise GenerationError(f"onnxruntime failed on {len(members)} sequences: {error}") from error
        seconds = time.perf_counter() - started
        for row, member in enumerate(members):
            if member.reads:
                member.receive(self._logits[row].astype(np.float32), seconds)

    def waiting(self) -> int:
        """How many sequences have a token that was announced and not read."""
        return sum(member.reads for member in self._members)

    @property
    def _rows(self) -> int:
        return len(self.buffers[0]) if self.buffers else 0

    def _resize(self, rows: int, capacity: int) -> None:
        """Moves each tensor to a buffer of another size, one at a time, so that only one exists twice."""
        layout = self.graph.cache_layout
        if self.buffers and self.buffers[0].shape[:3:2] == (rows, capacity):
            return
        if not self.buffers:
            self.buffers = [np.empty((0, layout.heads, 0, layout.head_dim), layout.dtype)] * len(layout.names)
        for index, old in enumerate(self.buffers):
            new = np.zeros((rows, layout.heads, capacity, layout.head_dim), layout.dtype)
            kept, filled = min(rows, len(old)), min(capacity, old.shape[2])
            new[:kept, :, :filled] = old[:kept, :, :filled]
            self.buffers[index] = new
        self._capacity = capacity
        self.version += 1

    def _bind(self, rows: int) -> None:
        """Binds the first `rows` rows of all buffers, unless they are bound."""
        if self._bound == (self.version, rows):
            return
        graph, value_of = self.graph, import_onnxruntime().OrtValue.ortvalue_from_numpy
        for buffer, (past, present) in zip(self.buffers, graph.cache_layout.names, strict=True):
            value = value_of(buffer[:rows])  # shares the memory
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)
        self._logits = np.empty((rows, 1, graph.vocab_size), graph.logits_dtype)
        self._binding.bind_ortvalue_output("logits", value_of(self._logits))
        self._bound = (self.version, rows)
