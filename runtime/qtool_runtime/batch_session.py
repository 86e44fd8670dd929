"""One sequence among several that are read together: its row of the common buffers, and its session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.batch import Batch
from qtool_runtime.compatibility import import_onnxruntime
from qtool_runtime.engine import Session
from qtool_runtime.graph import LoadedGraph
from qtool_runtime.kv_cache import Snapshot, check_room, check_truncation
from qtool_runtime.session import OnnxSession


class RowCache:
    """A row of the common buffers, as the KV cache of a sequence that is read alone (see `kv_cache.KvCache`).

    Args:
        batch: the common buffers.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._row = 0
        self._bound = -1  # the version of the buffers that is bound
        self.length = 0

    @property
    def bytes(self) -> int:
        """Bytes of the row, the unused tail included."""
        return sum(buffer[0].nbytes for buffer in self._batch.buffers if len(buffer))

    def move(self, row: int) -> None:
        """Takes another row, which holds the same already."""
        self._row, self._bound = row, -1

    def reserve(self, binding: Any, new_tokens: int) -> None:
        """Grows all rows if the new tokens need it."""
        check_room(self.length, new_tokens, self._batch.graph.capacity)
        self._batch.reserve(self.length + new_tokens)

    def bind(self, binding: Any) -> None:
        """Binds the row, unless it is bound: a sequence of its own, at the same place in memory."""
        if self._bound == self._batch.version:
            return
        value_of = import_onnxruntime().OrtValue.ortvalue_from_numpy
        for view, (past, present) in zip(self._views(), self._batch.graph.cache_layout.names, strict=True):
            value = value_of(view)
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        self._bound = self._batch.version

    def commit(self, binding: Any, new_tokens: int) -> None:
        """Counts the new tokens: the graph has written them already."""
        self.length += new_tokens

    def truncate(self, length: int) -> None:
        """Moves the end back; the next pass overwrites what is behind it."""
        check_truncation(length, self.length)
        self.length = length

    def snapshot(self, start: int, stop: int) -> Snapshot:
        """Copies a part of the row."""
        return tuple(view[:, :, start:stop].copy() for view in self._views())

    def restore(self, binding: Any, snapshots: Sequence[Snapshot]) -> None:
        """Fills the row with the snapshots."""
        self.length = sum(snapshot[0].shape[2] for snapshot in snapshots)
        self._batch.reserve(self.length)
        for view, parts in zip(self._views(), zip(*snapshots, strict=True), strict=True):
            np.concatenate(parts, axis=2, out=view[:, :, : self.length])

    def _views(self) -> list[NDArray[Any]]:
        return [buffer[self._row : self._row + 1] for buffer in self._batch.buffers]


class BatchSession:
    """One sequence of a batch (see `engine.Session`).

    It takes a row of the common buffers when it reads its first token.

    Args:
        batch: what it is read together with.

    Attributes:
        cache: its row.
        seconds_ahead: see `engine.Session`.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.cache = RowCache(batch)
        self._alone = OnnxSession(batch.graph, self.cache)
        self._joined = False
        self._ready: NDArray[np.float32] | None = None
        self._announced: int | None = None  # to be read
        self._last = 0  # the last token that was read
        self.seconds_ahead = 0.0

    @property
    def deadline(self) -> float | None:
        """When the time is up."""
        return self._alone.deadline

    @deadline.setter
    def deadline(self, moment: float | None) -> None:
        self._alone.deadline = moment

    @property
    def length(self) -> int:
        """Tokens read so far; one more than was asked for while a token that was read ahead is not."""
        return self.cache.length

    @property
    def context(self) -> int:
        """Most tokens this session can hold."""
        return self._alone.context

    @property
    def cache_bytes(self) -> int:
        """Bytes of its row of the cache."""
        return self.cache.bytes if self._joined else 0

    @property
    def row_limit(self) -> int:
        """Drafts would make sequences wait for each other."""
        return 1

    def forward(self, token_ids: Sequence[int] | NDArray[np.int64], rows: int = 1) -> NDArray[np.float32]:
        """Reads tokens: alone, or one together with those that other sequences have announced."""
        with self._batch.lock:
            self._alone.check()
            logits, self._ready = self._ready, None
            ahead, self.seconds_ahead = self.seconds_ahead, 0.0
            if logits is not None:
                if len(token_ids) == 1 and int(token_ids[0]) == self._last:
                    self.seconds_ahead = ahead
                    return logits
                self.cache.truncate(self.length - 1)  # another token was announced than is read now
            self._join()
            alone = len(token_ids) != 1 or int(token_ids[0]) != self._announced
            if alone or not self.reads or self._batch.waiting() == 1:
                self._announced = None
                logits = self._alone.forward(token_ids, rows)
                self._last = int(token_ids[-1])
                return logits
            self._batch.step()
            logits, self._ready, self.seconds_ahead = self._ready, None, 0.0
            assert logits is not None
            return logits

    @property
    def reads(self) -> bool:
        """Whether there is a token to read, and room for it."""
        return self._announced is not None and self.length < self.context

    @property
    def feed(self) -> int:
        """The token for the next pass of the batch: the announced one, or the last one again."""
        return self._last if self._announced is None or self.length >= self.context else self._announced

    def receive(self, logits: NDArray[np.float32], seconds: float) -> None:
        """Takes the logits behind the announced token, of shape (1, vocab_size), until they are asked for."""
        self.seconds_ahead = seconds
        assert self._announced is not None
        self._last, self._announced = self._announced, None
        self._ready = logits
        self.cache.commit(None, 1)

    def announce(self, token_id: int) -> None:
        """Lets the token be read in the next pass of the batch."""
        with self._batch.lock:
            self._announced = token_id if self._joined else None

    def truncate(self, length: int) -> None:
        """Forgets all tokens after the first `length`."""
        with self._batch.lock:
            self._ready = self._announced = None
            self._alone.truncate(length)

    def snapshot(self, start: int = 0, stop: int | None = None) -> Snapshot | None:
        """Returns a copy of the keys and values of tokens [start, stop), by default to the last one."""
        with self._batch.lock:
            return self._alone.snapshot(start, stop)

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Replaces what was read by the tokens of snapshots, one behind the other."""
        with self._batch.lock:
            self._alone.check()
            self._ready = self._announced = None
            self._join()
            self._alone.restore(snapshots)

    def cancel(self) -> None:
        """Stops a prompt that is being read in another thread, and refuses further passes."""
        self._alone.cancel()

    def close(self) -> None:
        """Gives the row back. Closing twice does nothing."""
        with self._batch.lock:
            if self._joined:
                self._batch.leave(self)
            self._joined = False
            self._ready = self._announced = None
            self.cache.length = 0
            self._alone.close()

    def _join(self) -> None:
        if not self._joined:
            self.cache.move(self._batch.join(self))
            self._joined = True


def new_sessions(graph: LoadedGraph, expected: int) -> Callable[[], Session]:
    """Returns a maker of sessions that are read together, if the graph and the device allow it.

    Otherwise they are independent of each other: right, and no quicker than one after the other.

    Args:
        graph: the loaded model file.
        expected: how many sessions there will be at once; there may be more.
    """
    if expected > 1 and graph.takes_batches:
        batch = Batch(graph, expected)
        return lambda: BatchSession(batch)
    return lambda: OnnxSession(graph)
