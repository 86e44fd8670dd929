"""The formulas: two models' logits for the same tokens become divergence, agreement and perplexity.

Everything works on a few rows at a time, so that memory does not grow with the text: a row of logits of a
vocabulary of 151,936 takes 600 kB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtool.errors import ArtifactError

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]

_ROWS = 8
"""Rows whose temporaries exist at the same time; they stay in the processor's cache."""


class Tally:
    """Collects what is measured of one model beside the reference, token by token.

    Args:
        name: what errors call the model.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._divergences: list[NDArray[np.float64]] = []
        self._losses: list[NDArray[np.float64]] = []
        self._agreements = 0

    @property
    def divergences(self) -> NDArray[np.float64]:
        """KL(reference || model) at each position, in nats, of shape (tokens,)."""
        return np.concatenate(self._divergences)

    @property
    def agreement(self) -> float:
        """Share of the positions at which both find the same token the most probable."""
        return self._agreements / len(self.divergences)

    @property
    def perplexity(self) -> float:
        """Exp of the mean negative log-probability of the tokens that really follow, at most e^700."""
        return float(np.exp(min(np.concatenate(self._losses).mean(), 700)))

    def add(self, reference: Logits, other: Logits, targets: Ids) -> None:
        """Adds some positions.

        Args:
            reference: log-probabilities of the reference, of shape (positions, vocabulary).
            other: log-probabilities of the model.
            targets: the token that follows each position, of shape (positions,).

        Raises:
            ArtifactError: the model predicts something that is no number.
        """
        found = divergence(reference, other)
        if not np.isfinite(found).all():
            raise ArtifactError(
                f"{self._name} predicts probabilities that are not numbers",
                hint="A weight is damaged, or a value is beyond float16's range: build the artifact again,"
                " for a target with float32 activations.",
            )
        self._divergences.append(found)
        self._losses.append(-other[np.arange(len(targets)), targets].astype(np.float64))
        self._agreements += int((reference.argmax(axis=1) == other.argmax(axis=1)).sum())


@dataclass(frozen=True)
class Distribution:
    """Summary of one number for each token.

    Attributes:
        mean: arithmetic mean.
        standard_error: of the mean, as if positions were independent. They are not quite (they share a
            text), so it is a lower bound of the uncertainty.
        median: half of the tokens have less.
        p99: all but one in a hundred have less.
    """

    mean: float
    standard_error: float
    median: float
    p99: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Distribution:
        """Sums values of shape (tokens,) up."""
        return cls(
            float(values.mean()),
            float(values.std() / np.sqrt(len(values))),
            float(np.median(values)),
            float(np.quantile(values, 0.99)),
        )


def divergence(reference: Logits, other: Logits) -> NDArray[np.float64]:
    """Returns the Kullback-Leibler divergence KL(reference || other) of each row, in nats.

    It is what the model loses, in bits times ln 2, where it is used instead of the reference; 0 where both
    predict the same, never negative but by rounding.

    Args:
        reference: log-probabilities of shape (rows, vocabulary).
        other: likewise.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        terms: NDArray[np.float64] = (np.exp(reference) * (reference - other)).sum(axis=1, dtype=np.float64)
    return terms


def log_probabilities(logits: Logits) -> Logits:
    """Returns the log-softmax of each row; the sums are made in float64."""
    with np.errstate(invalid="ignore", over="ignore"):  # what is not a number is refused by the tally
        return _log_softmax(logits)


def _log_softmax(logits: Logits) -> Logits:
    shifted: Logits = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return shifted


def compare(reference: Logits, others: Sequence[Logits], targets: Ids, tallies: Sequence[Tally]) -> None:
    """Adds the same positions of several models to their tallies.

    Args:
        reference: logits of the reference, of shape (positions, vocabulary).
        others: logits of the models, of the same shape.
        targets: the token that follows each position.
        tallies: one for the reference itself, then one for each model.
    """
    for rows in _blocks(len(reference)):
        expected = log_probabilities(reference[rows])
        tallies[0].add(expected, expected, targets[rows])
        for other, tally in zip(others, tallies[1:], strict=True):
            tally.add(expected, log_probabilities(other[rows]), targets[rows])


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, rows, _ROWS))
