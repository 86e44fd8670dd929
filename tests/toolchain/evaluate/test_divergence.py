"""The formulas, against plain float64 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qtool.errors import ArtifactError
from qtool.evaluate.divergence import Distribution, Logits, Tally, compare, divergence, log_probabilities

ROWS, VOCABULARY = 20, 50  # more rows than are computed at a time
logits = arrays.arrays(np.float32, (4, 11), elements=st.floats(-30, 30, width=32))


def random_logits(seed: int) -> Logits:
    return (np.random.default_rng(seed).standard_normal((ROWS, VOCABULARY)) * 4).astype(np.float32)


def exact(rows: Logits) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


@given(logits)
def test_probabilities_add_up_to_one(rows: Logits) -> None:
    assert np.exp(log_probabilities(rows)).sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert log_probabilities(rows) == pytest.approx(exact(rows), abs=1e-4)


@given(logits, logits)
def test_the_divergence_is_never_negative_and_zero_for_the_same(one: Logits, two: Logits) -> None:
    first, second = log_probabilities(one), log_probabilities(two)
    assert (divergence(first, second) >= -1e-5).all()
    assert (divergence(first, first) == 0).all()


def test_a_tally_has_what_float64_gives() -> None:
    one, two = random_logits(1), random_logits(2)
    targets = np.arange(ROWS) % VOCABULARY
    reference, tally = Tally("reference"), Tally("model")
    compare(one, [two], targets, [reference, tally])
    expected = (np.exp(exact(one)) * (exact(one) - exact(two))).sum(axis=1)
    assert tally.divergences == pytest.approx(expected, rel=1e-4)
    assert tally.agreement == (one.argmax(axis=1) == two.argmax(axis=1)).mean()
    assert tally.perplexity == pytest.approx(np.exp(-exact(two)[np.arange(ROWS), targets].mean()), rel=1e-4)
    assert (reference.divergences == 0).all()
    assert reference.agreement == 1


def test_a_tally_does_not_depend_on_how_rows_come() -> None:
    one, two, targets = random_logits(1), random_logits(2), np.zeros(ROWS, np.int64)
    whole, parts = ([Tally("reference"), Tally("model")] for _ in range(2))
    compare(one, [two], targets, whole)
    for start in range(0, ROWS, 3):
        rows = slice(start, start + 3)
        compare(one[rows], [two[rows]], targets[rows], parts)
    assert (whole[1].divergences == parts[1].divergences).all()
    assert whole[1].perplexity == parts[1].perplexity
    assert whole[1].agreement == parts[1].agreement


def test_a_distribution_sums_up() -> None:
    found = Distribution.of(np.arange(101, dtype=np.float64))
    assert (found.mean, found.median, found.p99) == (50, 50, 99)
    assert found.standard_error == pytest.approx(np.arange(101).std() / 101**0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    one, two = random_logits(1), random_logits(2)
    two[3, 5] = value
    with pytest.raises(ArtifactError, match="my-model predicts probabilities that are not numbers"):
        compare(one, [two], np.zeros(ROWS, np.int64), [Tally("reference"), Tally("my-model")])


def test_enormous_logits_have_a_perplexity() -> None:
    one, two = random_logits(1), random_logits(2)
    two[:, 1] = 1e30
    tally = Tally("model")
    compare(one, [two], np.zeros(ROWS, np.int64), [Tally("reference"), tally])
    assert np.isfinite(tally.perplexity)
    assert np.isfinite(tally.divergences).all()
