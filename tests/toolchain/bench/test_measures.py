"""Medians, ranges and paired ratios."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtool.bench.lengths import Lengths
from qtool.bench.measures import Measure, measures
from qtool.bench.rounds import Contender, Figures, prompt_ids, rotated


def contender(*rounds: Figures) -> Contender:
    return Contender("qtool", Path("model"), "python", "cpu", required=True, rounds=list(rounds))


def decoded(*turns: float) -> Figures:
    return Figures(0.25, 0.5, {"peak": 200}, {"peak": 300, "resident": 250}, {128: 0.5}, {0: list(turns)})


@pytest.fixture
def found() -> dict[tuple[str, ...], Measure]:
    return {measure.path: measure for measure in measures(Lengths((128,), (0,), 48))}


DECODE = ("decode", "0", "tokens_per_second")


def test_a_round_counts_with_the_median_of_its_turns(found: dict[tuple[str, ...], Measure]) -> None:
    engine = contender(decoded(1, 10, 11), decoded(20, 21, 90), decoded(30, 31, 32))
    spread = found[DECODE].spread(engine)
    assert spread is not None
    assert spread.to_dict() == {"median": 21, "low": 10, "high": 31, "rounds": [10, 21, 31]}
    assert found[DECODE].turns(engine) == [[1, 10, 11], [20, 21, 90], [30, 31, 32]]


def test_figures_are_found_where_they_are(found: dict[tuple[str, ...], Measure]) -> None:
    engine = contender(decoded(1.0))
    values = {path: spread.median for path, each in found.items() if (spread := each.spread(engine))}
    assert values == {
        ("prompts", "128", "tokens_per_second"): 256,
        ("prompts", "128", "time_to_first_token_seconds"): 0.5,
        DECODE: 1,
        ("import_seconds",): 0.25,
        ("load_seconds",): 0.5,
        ("start_seconds",): 0.75,
        ("memory_bytes", "loaded", "peak"): 200,
        ("memory_bytes", "end", "resident"): 250,
        ("memory_bytes", "end", "peak"): 300,
    }


def test_a_figure_that_the_system_cannot_give_is_none(found: dict[tuple[str, ...], Measure]) -> None:
    measure, engine = found["memory_bytes", "loaded", "resident"], contender(decoded(1.0))
    assert measure.spread(engine) is None
    assert measure.ratio(engine, engine) is None


def test_a_ratio_is_of_what_was_measured_side_by_side(found: dict[tuple[str, ...], Measure]) -> None:
    """Both slow down in the middle of a round, and to a different degree between rounds."""
    ours = contender(decoded(100, 10, 50), decoded(40, 2, 8))
    theirs = contender(decoded(50, 5, 20), decoded(10, 1, 4))
    ratio = found[DECODE].ratio(ours, theirs)
    assert ratio is not None
    assert ratio.rounds == (2, 2)  # while the medians' ratio is 2.5 in the first round


def test_engines_read_the_same_prompt_and_none_twice() -> None:
    assert prompt_ids(100, 1, 1000) == prompt_ids(100, 1, 1000)
    beginnings = {
        tuple(prompt_ids(length, number, 1000)[:2]) for length in (2, 5, 100) for number in range(5)
    }
    assert len(beginnings) == 15
    assert {token for number in range(20) for token in prompt_ids(50, number, 7)} == set(range(7))


def test_the_order_rotates() -> None:
    assert [rotated("abc", number) for number in range(4)] == [
        list("abc"),
        list("bca"),
        list("cab"),
        list("abc"),
    ]
    assert rotated([], 3) == []
