"""Choosing the next token from a row of logits. Pure numpy; a seed makes it repeatable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.errors import GenerationError

MINIMUM_TEMPERATURE = 1e-3
MAXIMUM_TEMPERATURE = 100.0
COLUMN_HEIGHT = 64
"""Logits per column when the largest are looked for; from 32 to 256 makes no difference in time."""


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose among the next tokens. The defaults choose the most likely one.

    The steps run in this order: repetition penalty, temperature, top-k, top-p, min-p, draw.

    Attributes:
        temperature: 0 takes the most likely token (the lowest id among equals); otherwise 0.001 to 100, and
            logits are divided by it before a token is drawn.
        top_k: draw among the k most likely tokens; 0 for all.
        top_p: draw among the fewest tokens whose probabilities reach this sum; above 0, up to 1 (all).
        min_p: leave out tokens less likely than this times the most likely one; 0 (none) to 1.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that are in the
            prompt or the answer; above 0, 1 for none.
        seed: a number from 0 to 2**64 - 1 for a repeatable draw, or None.

    Raises:
        GenerationError: a value is out of its range or of another type.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        warm = _is_number(self.temperature) and MINIMUM_TEMPERATURE <= self.temperature <= MAXIMUM_TEMPERATURE
        cold = _is_number(self.temperature) and self.temperature == 0
        _require(warm or cold, "temperature", self.temperature, "0 (greedy), or from 0.001 to 100")
        _require(_is_integer(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "0 (all), or a count")
        _require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1")
        _require(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1")
        penalty = self.repetition_penalty
        _require(
            _is_number(penalty) and 0 < penalty <= 100, "repetition_penalty", penalty, "above 0, up to 100"
        )
        seeded = self.seed is None or (_is_integer(self.seed) and 0 <= self.seed < 2**64)
        _require(seeded, "seed", self.seed, "None, or an integer from 0 to 2**64 - 1")


class Sampler:
    """Chooses one token after the other, and remembers which have been used.

    Args:
        options: how to choose.
        prompt: token ids that the repetition penalty counts as used.
    """

    def __init__(self, options: SamplingOptions, prompt: Sequence[int] | NDArray[np.int64] = ()) -> None:
        self._options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))
        self._used = np.unique(np.asarray(prompt, np.int64))
        self._known = set(self._used.tolist())

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Returns the next token's id.

        Args:
            logits: shape (vocab_size,); left unchanged.

        Raises:
            GenerationError: the logits hold NaN or +infinity, or nothing but -infinity.
        """
        penalty = self._options.repetition_penalty
        if penalty != 1:
            logits = penalize(logits, self._used, penalty)
        token = sample(logits, self._options, self._random)
        if token not in self._known:
            self._known.add(token)
            self._used = np.append(self._used, token)
        return token


def sample(logits: NDArray[np.float32], options: SamplingOptions, random: np.random.Generator) -> int:
    """Chooses a token id from logits of shape (vocab_size,). The repetition penalty is `penalize`'s.

    Raises:
        GenerationError: the logits hold NaN or +infinity, or nothing but -infinity.
    """
    best = int(logits.argmax())  # the first NaN, if there is one; the lowest id among equals
    if not math.isfinite(logits[best]):
        raise GenerationError(
            f"the model returned {float(logits[best])} as the logit of token {best}",
            hint="The artifact is broken or its numbers overflow: compare with a float32 build.",
        )
    if options.temperature == 0 or options.top_k == 1:
        return best
    ids, scores = keep_top_k(logits, options.top_k)
    # Not above 0, and temperatures are bounded, so neither the product nor the exponential overflows.
    weights = scores - logits[best]
    weights *= np.float32(1 / options.temperature)
    np.exp(weights, out=weights)
    ids, weights = keep_top_p(ids, weights, options.top_p)
    if options.min_p > 0:
        likely = weights >= options.min_p * weights.max()
        ids, weights = ids[likely], weights[likely]
    cumulative = np.cumsum(weights, dtype=np.float64)
    drawn = int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
    return int(ids[min(drawn, len(ids) - 1)])


def penalize(logits: NDArray[np.float32], used: NDArray[np.int64], penalty: float) -> NDArray[np.float32]:
    """Returns a copy of `logits` in which the tokens `used` are less likely (`penalty` > 1) or more (< 1)."""
    result = logits.copy()
    scores = result[used]
    result[used] = np.where(scores > 0, scores / penalty, scores * penalty)
    return result


def keep_top_k(logits: NDArray[np.float32], top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns ids, in ascending order, and logits of the `top_k` largest (0: all)."""
    size = len(logits)
    if not 0 < top_k < size:
        return np.arange(size), logits
    columns = size // COLUMN_HEIGHT
    if columns > top_k:
        # Fold the logits into columns: each column's maximum is a value of its own, so at least top_k values
        # reach the top_k-th largest maximum. Few others do, and the rest need no selection.
        maxima = logits[: COLUMN_HEIGHT * columns].reshape(COLUMN_HEIGHT, columns).max(axis=0)
        ids = np.flatnonzero(logits >= np.partition(maxima, columns - top_k)[columns - top_k])
    else:
        ids = np.arange(size)
    scores = logits[ids]
    threshold = np.partition(scores, len(ids) - top_k)[len(ids) - top_k]
    kept = _largest(scores, top_k, threshold)
    return ids[kept], scores[kept]


def keep_top_p(
    ids: NDArray[np.int64], weights: NDArray[np.float32], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the most likely ids and weights whose weights first reach `top_p` of the sum.

    A token under `(1 - top_p) / count` of the sum cannot be among them, since all such tokens together hold
    less than `1 - top_p`. That leaves few to sort.
    """
    if top_p >= 1:
        return ids, weights
    total = float(weights.sum(dtype=np.float64))
    descending = np.sort(weights[weights >= (1 - top_p) / len(weights) * total])[::-1]
    cumulative = np.cumsum(descending, dtype=np.float64)
    count = min(int(np.searchsorted(cumulative, top_p * total)) + 1, len(descending))
    kept = _largest(weights, count, descending[count - 1])
    return ids[kept], weights[kept]


def _largest(values: NDArray[np.float32], count: int, threshold: np.float32) -> NDArray[np.int64]:
    """Returns the indices of the `count` largest values, in ascending order; the lowest indices of equals.

    Selects by the smallest value that stays, `threshold`, rather than by sorting indices: that is quicker,
    and which of several equal values a sort or partition of indices puts first differs between processors.
    """
    indices = np.flatnonzero(values >= threshold)
    if len(indices) > count:
        equal = values[indices] == threshold
        surplus = np.flatnonzero(equal)[count - len(indices) :]
        indices = np.delete(indices, surplus)
    return indices


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float | np.floating) and math.isfinite(value))


def _require(valid: bool, name: str, value: Any, range_text: str) -> None:
    if not valid:
        raise GenerationError(f"{name} is {value!r}; valid: {range_text}")
