"""What is measured fits the context, and turns add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.bench.lengths import TURN, Lengths
from qtool.errors import ContextLimitError, GenerationError

counts = st.integers(1, 5000)
lengths = st.builds(
    Lengths,
    prompts=st.lists(counts, min_size=1, max_size=4).map(tuple),
    depths=st.lists(st.integers(0, 5000), min_size=1, max_size=4).map(tuple),
    tokens=counts,
)


@given(asked=lengths, context=st.integers(1, 10_000))
def test_what_is_clipped_fits_the_context_and_what_fits_is_not_clipped(asked: Lengths, context: int) -> None:
    try:
        fitting = asked.clipped(context)
    except ContextLimitError:
        assert context < 1 + 1 + asked.tokens  # not even one token, the first of the answer, and the others
        return
    assert fitting.capacity <= context
    assert fitting.tokens == asked.tokens
    assert fitting.clipped(context) == fitting
    for wanted, found, most in (
        (asked.prompts, fitting.prompts, context - 1),
        (asked.depths, fitting.depths, context - 1 - asked.tokens),
    ):
        assert list(found) == sorted({min(length, most) for length in wanted})


@given(tokens=counts)
def test_turns_are_even_and_add_up(tokens: int) -> None:
    turns = Lengths(tokens=tokens).turns
    assert sum(turns) == tokens
    assert max(turns) - min(turns) <= 1
    assert max(turns) <= 2 * TURN


def test_a_prompt_is_read_once_for_its_own_sake_and_for_decoding() -> None:
    assert Lengths((512, 128), (0, 512, 1024)).readings == (1, 128, 512, 1024)


def test_nothing_fits_is_an_error_that_says_what_would() -> None:
    with pytest.raises(ContextLimitError, match="a context of 50 tokens has no room") as error:
        Lengths().clipped(50)
    assert "--tokens 48" in error.value.hint
    Lengths(tokens=48).clipped(50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": (0,)}, "prompts has 0; valid: counts from 1"),
        ({"depths": (5, -1)}, "depths has -1; valid: counts from 0"),
        ({"tokens": 0}, "tokens has 0; valid: counts from 1"),
        ({"prompts": (), "depths": ()}, "nothing to measure"),
    ],
)
def test_counts_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        Lengths(**options)
