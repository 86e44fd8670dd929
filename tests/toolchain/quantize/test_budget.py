"""Spending a budget: never over it, and nearly as good as trying everything."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.quantize.budget import Option, fewest_bytes, most_bytes, spend
from qtool.quantize.schemes import Scheme

SCHEMES = (Scheme(2), Scheme(4), Scheme(8))
OPTIONS = st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(
        st.builds(Option, st.sampled_from(SCHEMES), st.integers(1, 30), st.integers(0, 50).map(float)),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
)


def loss(chosen: tuple[Option, ...]) -> float:
    return sum(option.loss for option in chosen)


def size(chosen: tuple[Option, ...]) -> int:
    return sum(option.nbytes for option in chosen)


@given(OPTIONS, st.integers(0, 60))
def test_the_budget_is_kept_and_spent_well(options: dict[str, list[Option]], more: int) -> None:
    """As good as the best of all choices that leaves room for one more upgrade."""
    budget = fewest_bytes(options) + more
    chosen = tuple(spend(options, budget).values())
    assert size(chosen) <= budget
    assert all(option in options[name] for name, option in zip(options, chosen, strict=True))
    upgrade = max(
        max(option.nbytes for option in choices) - min(option.nbytes for option in choices)
        for choices in options.values()
    )
    others = [loss(each) for each in product(*options.values()) if size(each) <= budget - upgrade]
    assert not others or loss(chosen) <= min(others) + 1e-9


@given(OPTIONS)
def test_with_enough_every_matrix_gets_its_best(options: dict[str, list[Option]]) -> None:
    chosen = tuple(spend(options, most_bytes(options)).values())
    assert loss(chosen) == sum(min(option.loss for option in choices) for choices in options.values())


def test_bits_go_where_they_save_most_per_byte() -> None:
    small, large = Option(Scheme(4), 10, 1.0), Option(Scheme(8), 20, 0.0)
    options = {
        "sensitive": [small._replace(loss=9.0), large],
        "large": [small._replace(nbytes=100), large._replace(nbytes=200)],
        "small": [small, large],
    }
    chosen = spend(options, 130)
    assert {name: option.scheme.bits for name, option in chosen.items()} == {
        "sensitive": 8,
        "large": 4,
        "small": 4,
    }


def test_the_largest_matrix_may_take_everything() -> None:
    """Upgrades of small ones save more per byte; the one large upgrade saves more in all."""
    options = {
        "table": [Option(Scheme(4), 100, 50.0), Option(Scheme(8), 200, 0.0)],
        "small": [Option(Scheme(4), 10, 8.0), Option(Scheme(8), 20, 0.0)],
    }
    chosen = spend(options, 210)
    assert [option.scheme.bits for option in chosen.values()] == [8, 4]


def test_the_bounds() -> None:
    options = {"a": [Option(Scheme(4), 5, 1.0), Option(Scheme(8), 9, 0.5), Option(Scheme(2), 12, 0.5)]}
    assert (fewest_bytes(options), most_bytes(options)) == (5, 9)
    with pytest.raises(ValueError, match="empty"):
        spend(options, 4)
