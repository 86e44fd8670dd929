"""The tree of blocks, with keys and values that tell which tokens they belong to."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtool_runtime.kv_cache import Snapshot
from qtool_runtime.prefix_memory import PrefixMemory

BLOCK = 4
TOKEN_BYTES = 2 * 3 * (4 + 1)
"""Two heads of three numbers: of float32 in one tensor, of int8 in the other."""

SEQUENCE = st.lists(st.integers(0, 2), min_size=1, max_size=18)


def keys_and_values(tokens: list[int]) -> Snapshot:
    """What a model would make of the tokens: every row depends on all tokens up to its own."""
    rows = [hash(tuple(tokens[: index + 1])) for index in range(len(tokens))]
    spread = np.array(rows, np.int64)[None, None, :, None] + np.arange(6).reshape(1, 2, 1, 3)
    return (spread % 9973).astype(np.float32), (spread % 127).astype(np.int8)


def copier(tokens: list[int]) -> Callable[[int, int], Snapshot]:
    whole = keys_and_values(tokens)
    return lambda start, stop: tuple(array[:, :, start:stop].copy() for array in whole)


def remember(memory: PrefixMemory, tokens: list[int]) -> None:
    memory.remember(tokens, copier(tokens))


def found(memory: PrefixMemory, tokens: list[int]) -> int:
    """How many tokens of a sequence are known; they have the keys and values of exactly these tokens."""
    pieces = memory.find(tokens)
    count = sum(piece[0].shape[2] for piece in pieces)
    for index, expected in enumerate(keys_and_values(tokens[:count])):
        if pieces:
            np.testing.assert_array_equal(np.concatenate([piece[index] for piece in pieces], 2), expected)
    return count


def common(one: list[int], other: list[int]) -> int:
    shortest = min(len(one), len(other))
    return next((index for index in range(shortest) if one[index] != other[index]), shortest)


@given(st.lists(SEQUENCE, max_size=12), SEQUENCE)
def test_the_longest_known_prefix_is_found_to_the_token(known: list[list[int]], asked: list[int]) -> None:
    memory = PrefixMemory(10**6, BLOCK)
    for tokens in known:
        remember(memory, tokens)
        assert found(memory, tokens) == len(tokens)
    assert found(memory, asked) == max((common(tokens, asked) for tokens in known), default=0)


@given(
    st.lists(st.tuples(st.booleans(), SEQUENCE), max_size=40),
    st.integers(0, 12),
    st.lists(st.integers(0, 2), max_size=10),
)
def test_a_bounded_memory_keeps_to_its_bound_and_is_never_wrong(
    calls: list[tuple[bool, list[int]]], tokens_of_room: int, pinned: list[int]
) -> None:
    memory = PrefixMemory(tokens_of_room * TOKEN_BYTES, BLOCK)
    memory.pin(pinned, keys_and_values(pinned))
    for remembers, tokens in calls:
        if remembers:
            remember(memory, tokens)
        assert found(memory, tokens) >= common(pinned, tokens)
        assert 0 <= memory.bytes <= memory.limit
    memory.forget()
    assert memory.bytes == 0
    for _, tokens in calls:
        assert found(memory, tokens) == common(pinned, tokens)


def test_a_shared_start_is_held_once() -> None:
    memory = PrefixMemory(10**6, BLOCK)
    system = [9] * 8
    for question in range(5):
        remember(memory, [*system, question, 1, 2])
    assert memory.bytes == (8 + 5 * 3) * TOKEN_BYTES


def test_a_conversation_that_goes_on_replaces_its_short_last_block() -> None:
    memory = PrefixMemory(10**6, BLOCK)
    tokens = list(range(11))
    for length in (2, 3, 6, 11):
        remember(memory, tokens[:length])
        assert memory.bytes == length * TOKEN_BYTES


def test_what_is_known_is_not_copied_again() -> None:
    memory, asked = PrefixMemory(10**6, BLOCK), []

    def copy(start: int, stop: int) -> Snapshot:
        asked.append((start, stop))
        return copier(list(range(20)))(start, stop)

    memory.remember(range(10), copy)
    memory.remember(range(10), copy)
    memory.remember(range(14), copy)
    assert asked == [(0, 4), (4, 8), (8, 10), (8, 12), (12, 14)]


def test_the_least_recently_used_leaf_goes_first() -> None:
    memory = PrefixMemory(4 * BLOCK * TOKEN_BYTES, BLOCK)
    first, second, third = ([1] * 4 + [name] * 4 for name in (2, 3, 4))
    for tokens in (first, second, third):
        remember(memory, tokens)
    found(memory, first)
    remember(memory, [5] * 4)
    assert [found(memory, tokens) for tokens in (first, second, third, [5] * 4)] == [8, 4, 8, 4]


def test_of_a_long_sequence_the_start_is_kept() -> None:
    memory = PrefixMemory(3 * BLOCK * TOKEN_BYTES + 1, BLOCK)
    remember(memory, [7] * 8)
    remember(memory, list(range(100)))
    assert found(memory, list(range(100))) == 12
    assert found(memory, [7] * 8) == 0


def test_a_block_larger_than_the_bound_drops_nothing() -> None:
    memory = PrefixMemory(3 * TOKEN_BYTES, BLOCK)
    remember(memory, [1, 2])
    remember(memory, [5] * 4)
    assert found(memory, [1, 2]) == 2


def test_nothing_is_copied_with_a_bound_of_0() -> None:
    PrefixMemory(0).remember([1], lambda start, stop: pytest.fail("copied"))


def test_an_engine_that_hides_keys_and_values_is_not_remembered() -> None:
    memory = PrefixMemory(10**6)
    memory.remember([1, 2], lambda start, stop: None)
    assert found(memory, [1, 2]) == memory.bytes == 0


def test_remembering_while_remembering_does_nothing() -> None:
    """As when the garbage collector ends a forgotten answer in the midst of it."""
    memory = PrefixMemory(10**6, BLOCK)

    def copy(start: int, stop: int) -> Snapshot:
        remember(memory, [9, 9])
        return copier([1, 2])(start, stop)

    memory.remember([1, 2], copy)
    assert (found(memory, [1, 2]), found(memory, [9, 9])) == (2, 0)


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_threads_may_use_it_at_the_same_time(seed: int) -> None:
    memory, failures = PrefixMemory(40 * TOKEN_BYTES, BLOCK), []

    def work(number: int) -> None:
        random = np.random.default_rng([seed, number])
        try:
            for _ in range(200):
                tokens = random.integers(0, 3, random.integers(1, 20)).tolist()
                found(memory, tokens)
                remember(memory, tokens)
                if random.random() < 0.02:
                    memory.forget()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert 0 <= memory.bytes <= memory.limit
    memory.forget()
    assert memory.bytes == 0
