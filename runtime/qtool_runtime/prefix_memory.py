"""Keys and values of what was read before, so that a prompt that starts like it is only read from there on.

The memory is a tree of blocks of some tokens each. A path from its root is a sequence that some session has
read, and sequences that start alike share blocks: a system prompt is held once for all conversations. Only
the last block of a sequence may be shorter. Tokens are compared, not hashes, so that nothing else is ever
taken for a prefix; and a sequence that leaves a block half-way still uses the first part of it.

A full memory drops the least recently used block that no other one follows. vLLM (Kwon et al., "Efficient
Memory Management for Large Language Model Serving with PagedAttention", 2023) shares blocks by hashes of what
is in them; SGLang (Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs", 2024)
keeps a tree and drops its leaves. This is the second idea with blocks of the first.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter

from qtool_runtime.kv_cache import Snapshot

BLOCK_TOKENS = 64
"""Tokens of a block, unless asked otherwise."""

Tokens = tuple[int, ...]


@dataclass(eq=False)
class _Block:
    """Some tokens behind those of its parent, and their keys and values.

    Attributes:
        tokens: fewer than a block has only where nothing follows; none in the tree's root.
        values: their keys and values; never written to.
        parent: what comes before; None for the root.
        pinned: stays for good, and is not counted.
        children: what may follow, in the order of their tokens.
    """

    tokens: Tokens
    values: Snapshot
    parent: _Block | None
    pinned: bool = False
    children: list[_Block] = field(default_factory=list)

    def place(self, tokens: Tokens) -> int:
        """Returns where among the children a block of these tokens is, or would be."""
        return bisect_left(self.children, tokens, key=attrgetter("tokens"))

    def closest(self, tokens: Tokens) -> tuple[_Block | None, int]:
        """Returns the child that starts most like `tokens`, and how many tokens they share.

        In a sorted list, that is one of the two neighbours of the place where `tokens` would be.
        """
        place = self.place(tokens)
        neighbours = self.children[max(place - 1, 0) : place + 1]
        shared = [(_shared(child.tokens, tokens), child) for child in neighbours]
        count, child = max(shared, key=lambda pair: pair[0], default=(0, None))
        return child, count


class PrefixMemory:
    """What the sessions over one model have read. Safe to use from several threads.

    Args:
        limit: most bytes of keys and values to hold; with 0, nothing is remembered.
        block_tokens: tokens of a block.
    """

    def __init__(self, limit: int, block_tokens: int = BLOCK_TOKENS) -> None:
        self.limit = limit
        self.block_tokens = block_tokens
        self._lock = threading.Lock()
        self._holder: int | None = None  # the thread that has the lock
        self._root = _Block((), (), None, pinned=True)
        self._bytes = 0
        self._recent: OrderedDict[_Block, None] = OrderedDict()
        """All blocks that are not pinned, the least recently used first, children before their parents."""

    @property
    def bytes(self) -> int:
        """Bytes of keys and values that are held, those that were pinned left out."""
        return self._bytes

    def find(self, token_ids: Sequence[int]) -> list[Snapshot]:
        """Returns keys and values of the longest known prefix of a sequence, one piece behind the other."""
        tokens = tuple(token_ids)
        with self._held():
            path = self._walk(tokens)
            self._touch([block for block, _ in path])
            return [_first(block.values, count) for block, count in path]

    def remember(self, token_ids: Sequence[int], copy: Callable[[int, int], Snapshot | None]) -> None:
        """Copies what it does not hold yet of a sequence: from its start, as much as there is room for.

        Other threads wait as long as the copying takes: about 10 ms for 1,000 tokens of a 0.5B model.

        Args:
            token_ids: what was read.
            copy: returns a copy of the keys and values of tokens [start, stop), or None if it cannot.
        """
        if not self.limit or self._holder == threading.get_ident():
            return  # the garbage collector may end a forgotten answer while this thread is in here
        with self._held():
            self._insert(tuple(token_ids), copy, pinned=False)

    def pin(self, token_ids: Sequence[int], values: Snapshot) -> None:
        """Takes a sequence that is never dropped and does not count, without copying its keys and values."""
        with self._held():
            self._insert(tuple(token_ids), lambda start, stop: _part(values, start, stop), pinned=True)

    def forget(self) -> None:
        """Drops everything that is not pinned."""
        with self._held():
            for block in list(self._recent):  # children before their parents
                self._drop(block)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Holds the lock, and notes which thread does."""
        with self._lock:
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = None

    def _walk(self, tokens: Tokens) -> list[tuple[_Block, int]]:
        """Returns the blocks along the longest known prefix, and how many tokens of each belong to it."""
        block, path = self._root, []
        for start in range(0, len(tokens), self.block_tokens):
            child, count = block.closest(tokens[start : start + self.block_tokens])
            if child is None or not count:
                break
            path.append((child, count))
            if count < self.block_tokens:
                break
            block = child
        return path

    def _insert(self, tokens: Tokens, copy: Callable[[int, int], Snapshot | None], *, pinned: bool) -> None:
        """Adds the blocks of a sequence that are missing, from the first to the last."""
        path = [block for block, count in self._walk(tokens) if count == self.block_tokens]
        self._touch(path)
        for start in range(len(path) * self.block_tokens, len(tokens), self.block_tokens):
            parent = path[-1] if path else self._root
            part = tokens[start : start + self.block_tokens]
            known, count = parent.closest(part)
            if count == len(part):
                break  # it is the last one, and the start of a block that is there
            values = copy(start, start + len(part))
            if values is None:
                break
            if known is not None and count == len(known.tokens) and not known.pinned:
                self._drop(known)  # the new block is a longer one
            if not pinned and not self._make_room(_size(values), path):
                break
            block = _Block(part, values, parent, pinned)
            parent.children.insert(parent.place(part), block)
            if not pinned:
                self._bytes += _size(values)
                self._recent[block] = None
            path.append(block)
        self._touch(path)

    def _touch(self, path: Sequence[_Block]) -> None:
        """Makes the blocks of a path the most recently used ones, the first of them last of all."""
        for block in reversed(path):
            if not block.pinned:
                self._recent.move_to_end(block)

    def _make_room(self, size: int, path: Sequence[_Block]) -> bool:
        """Drops blocks until `size` bytes fit, but none of `path`; returns whether they do."""
        if size > self.limit:
            return False
        while self._bytes + size > self.limit:
            oldest = next(iter(self._recent))  # a leaf, unless its children are in the path
            if oldest in path:
                return False
            self._drop(oldest)
        return True

    def _drop(self, block: _Block) -> None:
        assert block.parent is not None
        del block.parent.children[block.parent.place(block.tokens)]
        del self._recent[block]
        self._bytes -= _size(block.values)


def _shared(one: Tokens, other: Tokens) -> int:
    """Counts the tokens that two sequences start with alike."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _size(values: Snapshot) -> int:
    return sum(array.nbytes for array in values)


def _part(values: Snapshot, start: int, stop: int) -> Snapshot:
    """Returns views of the tokens [start, stop)."""
    return tuple(array[:, :, start:stop] for array in values)


def _first(values: Snapshot, count: int) -> Snapshot:
    return values if values[0].shape[2] == count else _part(values, 0, count)
