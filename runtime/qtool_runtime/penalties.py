"""Penalties on the logits of tokens that were used before. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def penalize_repetition(logits: NDArray[np.float32], used: NDArray[np.int64], penalty: float) -> None:
    """Makes the tokens `used` less likely (`penalty` > 1) or more (< 1), in place.

    Positive logits are divided by the penalty and negative ones multiplied by it, however often a token was
    used (CTRL, Keskar et al. 2019, section 4.1, with the sign taken into account as transformers does it).

    Args:
        logits: shape (vocab_size,).
        used: distinct token ids.
        penalty: above 0.
    """
    scores = logits[used]
    logits[used] = np.where(scores > 0, scores / penalty, scores * penalty)


def penalize_presence(
    logits: NDArray[np.float32],
    generated: NDArray[np.int64],
    counts: NDArray[np.int64],
    presence: float,
    frequency: float,
) -> None:
    """Subtracts `presence + frequency * count` from the logit of each generated token, in place.

    OpenAI's definition: only tokens of the answer count, not those of the prompt.

    Args:
        logits: shape (vocab_size,).
        generated: distinct token ids of the answer so far.
        counts: how often each of them was generated.
        presence: subtracted once for each token that was generated.
        frequency: subtracted as often as the token was generated.
    """
    logits[generated] -= (presence + frequency * counts).astype(np.float32)


class TokenCounts:
    """Distinct token ids in the order of their first use, and how often each was used.

    Args:
        token_ids: uses to start with.
    """

    def __init__(self, token_ids: Sequence[int] | NDArray[np.int64] = ()) -> None:
        self.ids, self.counts = np.unique(np.asarray(token_ids, np.int64), return_counts=True)
        self._places = {token: place for place, token in enumerate(self.ids.tolist())}

    def add(self, token: int) -> None:
        """Counts one more use."""
        place = self._places.setdefault(token, len(self.ids))
        if place == len(self.ids):
            self.ids = np.append(self.ids, token)
            self.counts = np.append(self.counts, 0)
        self.counts[place] += 1
