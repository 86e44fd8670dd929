"""Does an emulated processor say of an artifact what this one says?

Kernels of different processors round differently, so logits are not the same to the last bit. Compared are
the probabilities (their KL divergence) and the greedy tokens. Where those differ, it matters whether there
was anything to choose between: two tokens that are about equally likely may change places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.evaluate.divergence import divergence, log_probabilities

MOST_DIVERGENCE = 0.01
"""Mean KL divergence in nats. For models of 0.5B, other rounding in kernels gave 0.002 at most, rounding the
weights to int4 gives 0.08, and a wrong kernel gives several."""

TIE = 0.3
"""Difference of log-probabilities below which two tokens count as equally likely: about twice what a
divergence of that size moves them by."""


@dataclass(frozen=True)
class Comparison:
    """What the emulated processor did, beside what this one did.

    Attributes:
        tokens: how many were generated.
        same_tokens: how many of them are the same, from the first on.
        text: what the emulated processor generated.
        kl_at_once: mean KL divergence of the probabilities where tokens are read in one pass, in nats.
        kl_one_by_one: the same where they are read one by one.
        kl_largest: of a single token, of both.
        logit_distance: largest difference of two logits, relative to the largest logit.
        problem: why this is not the same model; empty if it is.
    """

    tokens: int
    same_tokens: int
    text: str
    kl_at_once: float
    kl_one_by_one: float
    kl_largest: float
    logit_distance: float
    problem: str

    @property
    def kl_mean(self) -> float:
        """The larger one of both means."""
        return max(self.kl_at_once, self.kl_one_by_one)


def compare(
    here: Mapping[str, Any],
    there: Mapping[str, Any],
    here_logits: NDArray[np.float32],
    there_logits: NDArray[np.float32],
) -> Comparison:
    """Compares findings of `probe`.

    Args:
        here: this processor's findings.
        there: the emulated processor's, for the same request and this processor's answer.
        here_logits: float32 of shape (2, tokens, vocabulary).
        there_logits: likewise.
    """
    answer, other = here["answer"], there["answer"]
    pairs = enumerate(zip(answer, other, strict=True))
    same = next((index for index, (one, two) in pairs if one != two), len(answer))
    expected = [log_probabilities(rows) for rows in here_logits]
    found = [log_probabilities(rows) for rows in there_logits]
    divergences = np.stack([divergence(*pair) for pair in zip(expected, found, strict=True)])
    means = divergences.mean(axis=1)
    problem = ""
    if here["prompt"] != there["prompt"]:
        problem = "the prompt becomes other tokens"
    elif not np.isfinite(divergences).all():
        problem = "it predicts probabilities that are not numbers"
    elif means.max() > MOST_DIVERGENCE:
        problem = f"its probabilities are others: KL divergence {means.max():.2g}, at most {MOST_DIVERGENCE}"
    elif same < len(answer):
        likely = expected[1][same]
        if likely[answer[same]] - likely[other[same]] > TIE:
            problem = f"token {same + 1} is another, though it was clearly the likeliest"
    return Comparison(
        tokens=len(answer),
        same_tokens=same,
        text=there["text"],
        kl_at_once=float(means[0]),
        kl_one_by_one=float(means[1]),
        kl_largest=float(divergences.max()),
        logit_distance=float(np.abs(there_logits - here_logits).max() / np.abs(here_logits).max()),
        problem=problem,
    )
