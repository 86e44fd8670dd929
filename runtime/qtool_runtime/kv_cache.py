"""The KV cache: keys and values of every token so far, so that a new token costs one forward pass of one row.

Two kinds of graph need two kinds of cache. A graph with GroupQueryAttention updates its cache in place:
`InPlaceCache` keeps one buffer per tensor, bound as input and as output. A graph with decomposed attention
returns a longer tensor each time: `ConcatenateCache` feeds that back. Nothing outside this file knows which
one is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from qtool_runtime.errors import ArtifactError, ContextLimitError, GenerationError
from qtool_runtime.manifest import Manifest

GROWTH_STEP = 256
"""Tokens by which in-place buffers grow. Each step copies what is filled: at 4,000 tokens of a 0.5B model
100 MB, about 20 ms, once in 256 tokens that take seconds. The unused tail is at most 6 MB for that model, and
untouched pages of it take no memory."""

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}
"""An int8 cache holds what the graph quantized, with scales that are part of the graph; nothing here needs to
know them."""


@dataclass(frozen=True)
class CacheLayout:
    """Names, shapes and place of a graph's cached tensors.

    Attributes:
        update: "in_place" or "concatenate".
        names: (input, output) names of each cached tensor: keys and values of every layer.
        heads: key/value heads.
        head_dim: numbers per head and token.
        dtype: one of the values of `DTYPES`.
        device: the device whose memory holds the tensors: "cpu", "cuda", "dml".
    """

    update: str
    names: tuple[tuple[str, str], ...]
    heads: int
    head_dim: int
    dtype: np.dtype[Any]
    device: str

    @classmethod
    def from_manifest(cls, manifest: Manifest, device: str) -> CacheLayout:
        """Reads the layout from a manifest.

        Raises:
            ArtifactError: the update style or dtype is unknown, or a name pattern lacks its one "%d".
        """
        cache, graph = manifest.kv_cache, manifest.graph
        if cache.update not in CACHES:
            raise ArtifactError(
                f"the manifest's kv_cache.update is {cache.update!r}; known: {', '.join(CACHES)}"
            )
        if cache.dtype not in DTYPES:
            raise ArtifactError(
                f"the manifest's kv_cache.dtype is {cache.dtype!r}; known: {', '.join(DTYPES)}"
            )
        patterns = ((graph.past_key, graph.present_key), (graph.past_value, graph.present_value))
        for pattern in (name for pair in patterns for name in pair):
            if pattern.count("%") != 1 or pattern.count("%d") != 1:
                raise ArtifactError(
                    f"the manifest's name pattern {pattern!r} should have one %d, for the layer"
                )
        names = tuple(
            (past.replace("%d", str(layer)), present.replace("%d", str(layer)))
            for layer in range(cache.layers)
            for past, present in patterns
        )
        return cls(
            cache.update, names, cache.num_key_value_heads, cache.head_dim, DTYPES[cache.dtype], device
        )

    @cached_property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in all layers."""
        return len(self.names) * self.heads * self.head_dim * self.dtype.itemsize

    def zeros(self, tokens: int) -> np.ndarray[Any, Any]:
        """Returns one cached tensor's worth of zeros, of shape (1, heads, tokens, head_dim), on the host."""
        return np.zeros((1, self.heads, tokens, self.head_dim), self.dtype)

    def to_device(self, values: np.ndarray[Any, Any]) -> Any:
        """Returns an OrtValue that holds `values`: on the CPU it shares their memory, elsewhere it copies."""
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(values, self.device, 0)


Snapshot = tuple[np.ndarray[Any, Any], ...]
"""Keys and values of some tokens: an array of shape (1, heads, tokens, head_dim) for each cached tensor."""


class KvCache(Protocol):
    """What a session asks of a cache. One sequence, so the batch dimension is always 1."""

    @property
    def length(self) -> int:
        """Tokens whose keys and values are held."""

    @property
    def bytes(self) -> int:
        """Bytes held for keys and values, the unused tail of buffers included."""

    def reserve(self, binding: Any, new_tokens: int) -> None:
        """Makes room for tokens that one or several runs will add.

        Raises:
            ContextLimitError: they do not fit; nothing has changed.
        """

    def bind(self, binding: Any) -> None:
        """Binds past and present for the next run, before any other output."""

    def commit(self, binding: Any, new_tokens: int) -> None:
        """Takes over what the run wrote."""

    def truncate(self, length: int) -> None:
        """Forgets all tokens after the first `length`, for a rejected draft or a reused prefix."""

    def snapshot(self, start: int, stop: int) -> Snapshot:
        """Returns a copy of what is held of the tokens [start, stop), on the host."""

    def restore(self, binding: Any, snapshots: Sequence[Snapshot]) -> None:
        """Replaces what is held by copies of snapshots of caches of the same layout, one behind the other."""


class InPlaceCache:
    """One buffer per tensor, bound as past and as present; the graph writes new rows behind the filled part.

    Args:
        layout: the graph's cached tensors.
        limit: most tokens ever held; buffers never grow beyond it.
    """

    def __init__(self, layout: CacheLayout, limit: int) -> None:
        self._layout, self._limit = layout, limit
        self._buffers: list[Any] = []
        self._capacity = 0
        self.length = 0

    @property
    def bytes(self) -> int:
        """Bytes of all buffers."""
        return self._capacity * self._layout.bytes_per_token

    def reserve(self, binding: Any, new_tokens: int) -> None:
        """Grows the buffers if the new tokens need it."""
        check_room(self.length, new_tokens, self._limit)
        if self.length + new_tokens > self._capacity:
            self._grow(binding, self.length + new_tokens)

    def bind(self, binding: Any) -> None:
        """Nothing to do: buffers stay bound from one growth to the next."""

    def commit(self, binding: Any, new_tokens: int) -> None:
        """Counts the new tokens: the graph has written them already."""
        self.length += new_tokens

    def truncate(self, length: int) -> None:
        """Moves the end back; the rows behind it are overwritten by the next run."""
        check_truncation(length, self.length)
        self.length = length

    def snapshot(self, start: int, stop: int) -> Snapshot:
        """Copies a part of each buffer."""
        return tuple(buffer.numpy()[:, :, start:stop].copy() for buffer in self._buffers)

    def restore(self, binding: Any, snapshots: Sequence[Snapshot]) -> None:
        """Makes new buffers, filled with the snapshots."""
        self.length = sum(snapshot[0].shape[2] for snapshot in snapshots)

        def fill(index: int, buffer: np.ndarray[Any, Any]) -> None:
            np.concatenate(
                [snapshot[index] for snapshot in snapshots], axis=2, out=buffer[:, :, : self.length]
            )

        self._allocate(binding, self.length, fill)

    def _grow(self, binding: Any, tokens: int) -> None:
        """Moves each tensor to a larger buffer, one at a time, so that only one exists twice."""
        old = self._buffers

        def move(index: int, buffer: np.ndarray[Any, Any]) -> None:
            if self.length:
                # The array does not keep its OrtValue alive in all versions of onnxruntime: copy, then drop.
                buffer[:, :, : self.length] = old[index].numpy()[:, :, : self.length]
                old[index] = None

        self._allocate(binding, tokens, move)

    def _allocate(self, binding: Any, tokens: int, fill: Callable[[int, np.ndarray[Any, Any]], None]) -> None:
        """Makes new buffers for at least `tokens` tokens; `fill` writes the first values of each."""
        self._capacity = min(-(-tokens // GROWTH_STEP) * GROWTH_STEP, self._limit)
        self._buffers = []
        for index, (past, present) in enumerate(self._layout.names):
            buffer = self._layout.zeros(self._capacity)
            fill(index, buffer)
            value = self._layout.to_device(buffer)
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
            self._buffers.append(value)


class ConcatenateCache:
    """The tensors that the last run returned, fed back as the past of the next.

    Args:
        layout: the graph's cached tensors.
        limit: most tokens ever held.
    """

    def __init__(self, layout: CacheLayout, limit: int) -> None:
        self._layout, self._limit = layout, limit
        self._values = [layout.to_device(layout.zeros(0)) for _ in layout.names]
        self.length = 0

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return self.length * self._layout.bytes_per_token

    def reserve(self, binding: Any, new_tokens: int) -> None:
        """Checks the limit: ONNX Runtime allocates, run by run."""
        check_room(self.length, new_tokens, self._limit)

    def bind(self, binding: Any) -> None:
        """Binds the last run's tensors as past, and lets ONNX Runtime allocate the longer ones."""
        for value, (past, present) in zip(self._values, self._layout.names, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_output(present, self._layout.device, 0)

    def commit(self, binding: Any, new_tokens: int) -> None:
        """Takes the returned tensors: `bind` comes before anything else, so they are the first outputs."""
        self._values = binding.get_outputs()[: len(self._values)]
        self.length += new_tokens

    def truncate(self, length: int) -> None:
        """Copies the part that stays."""
        check_truncation(length, self.length)
        kept = (value.numpy()[:, :, :length].copy() for value in self._values)
        self._values = [self._layout.to_device(values) for values in kept]
        self.length = length

    def snapshot(self, start: int, stop: int) -> Snapshot:
        """Copies a part of each tensor."""
        return tuple(value.numpy()[:, :, start:stop].copy() for value in self._values)

    def restore(self, binding: Any, snapshots: Sequence[Snapshot]) -> None:
        """Takes copies of the snapshots as the past of the next run."""
        joined = [np.concatenate(parts, axis=2) for parts in zip(*snapshots, strict=True)]
        self._values = [self._layout.to_device(values) for values in joined]
        self.length = joined[0].shape[2]


CACHES: dict[str, type[InPlaceCache] | type[ConcatenateCache]] = {
    "in_place": InPlaceCache,
    "concatenate": ConcatenateCache,
}


def new_cache(layout: CacheLayout, limit: int) -> KvCache:
    """Returns an empty cache of the kind that the layout asks for; `limit` is in tokens."""
    return CACHES[layout.update](layout, limit)


def check_room(length: int, new_tokens: int, limit: int) -> None:
    """Refuses tokens that would pass the limit.

    Raises:
        ContextLimitError: `length + new_tokens > limit`.
    """
    if length + new_tokens > limit:
        raise ContextLimitError(
            f"{length} tokens are cached and {new_tokens} more would pass the context of {limit}",
            hint="Shorten the prompt, ask for fewer tokens, or build the artifact with a longer context.",
        )


def check_truncation(length: int, current: int) -> None:
    """Refuses a truncation that would lengthen the cache.

    Raises:
        GenerationError: `length` is not in 0..current.
    """
    if not 0 <= length <= current:
        raise GenerationError(f"cannot truncate to {length} tokens; the cache holds {current}")
