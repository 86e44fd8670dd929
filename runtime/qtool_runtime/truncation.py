"""Which tokens stay possible (top-k, top-p) and a draw among them, over whole vocabularies. Pure numpy.

Nothing here sorts, gathers or sums up a whole vocabulary number by number: each of these takes 1 to 4 ms for
the 151,936 tokens of Qwen, where a step over all of them at once takes 0.01 to 0.1 ms.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

COLUMN_HEIGHT = 64
"""Logits per column when the largest are looked for; from 32 to 256 makes no difference in time."""

ROW_LENGTH = 512
"""Weights per row when a token is drawn: sums of rows first, then one row."""

SORTED_AT_MOST = 8192
"""Weights that top-p sorts at once; of more, it sorts those around the threshold that a sample suggests."""

SAMPLE_STEP = 16
"""Every how many-th weight is in that sample: 9,496 of 151,936."""


def keep_top_k(logits: NDArray[np.float32], top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns ids, in ascending order, and logits of the `top_k` largest (0: all), of equals the first."""
    if not 0 < top_k < len(logits):
        return np.arange(len(logits)), logits
    columns = len(logits) // COLUMN_HEIGHT
    if columns <= top_k:
        ids = np.flatnonzero(top_k_mask(logits, top_k))
        return ids, logits[ids]
    # Fold the logits into columns: each column's maximum is a value of its own, so at least top_k values
    # reach the top_k-th largest maximum. Few others do, and the rest need no selection.
    maxima = logits[: COLUMN_HEIGHT * columns].reshape(COLUMN_HEIGHT, columns).max(axis=0)
    reached = np.partition(maxima, columns - top_k)[columns - top_k]
    ids = np.flatnonzero(logits > reached)
    if len(ids) < top_k:
        ids = np.flatnonzero(_mark_largest(logits, top_k, reached))
    scores = logits[ids]
    kept = top_k_mask(scores, top_k)
    return ids[kept], scores[kept]


def top_k_mask(logits: NDArray[np.float32], top_k: int) -> NDArray[np.bool_]:
    """Marks the `top_k` largest logits, of equals the first; `top_k` is from 1 to their number."""
    threshold = np.partition(logits, len(logits) - top_k)[len(logits) - top_k]
    return _mark_largest(logits, top_k, threshold)


def top_p_mask(weights: NDArray[np.float32], top_p: float) -> NDArray[np.bool_]:
    """Marks the fewest weights that reach `top_p` of the sum: the largest, and of equals the first.

    Sorting a whole vocabulary would take longer than all other steps together. A weight under
    `(1 - top_p) / count` of the sum cannot be among the marked, since all such weights together hold less
    than `1 - top_p`; mostly that leaves few to sort. In a flat distribution it leaves nearly all; there, a
    sample gives a range that holds the threshold, and only the weights within it are sorted. The sum above
    the range is exact, so a range that misses is noticed, and everything is sorted.

    Args:
        weights: not negative, of shape (count,).
        top_p: above 0, up to 1.
    """
    total = float(weights.sum())
    target = top_p * total
    lowest = np.float32((1 - top_p) / len(weights) * total)
    found = None
    if np.count_nonzero(weights >= lowest) > SORTED_AT_MOST:
        below, above = _threshold_range(weights, target, total)
        found = _threshold_within(weights, target, max(below, lowest), above)
    found = found or _threshold_within(weights, target, lowest, np.float32(np.inf))
    if found is None:  # by rounding, all of them just miss the sum
        return weights > 0
    return _mark_largest(weights, *found)


def _threshold_range(
    weights: NDArray[np.float32], target: float, total: float
) -> tuple[np.float32, np.float32]:
    """Returns values that almost certainly enclose the smallest weight that top-p keeps.

    The sample is judged by what its small weights hold, for they are many and so estimated well; single
    large ones would distort it.
    """
    sample = np.sort(weights[::SAMPLE_STEP])
    tails = np.cumsum(sample.astype(np.float64)) * (len(weights) / len(sample))
    place = int(np.searchsorted(tails, total - target))
    spread = 2 * math.isqrt(len(sample))  # four standard deviations of a rank in the sample, at its middle
    below = sample[place - spread] if place >= spread else np.float32(0)
    above = sample[place + spread] if place + spread < len(sample) else np.float32(np.inf)
    return below, above


def _threshold_within(
    weights: NDArray[np.float32], target: float, below: np.float32, above: np.float32
) -> tuple[int, np.float32] | None:
    """Returns how many weights top-p keeps and the smallest of them, if that is from `below` to `above`."""
    larger = weights > above
    held = float((weights * larger).sum()) if above < np.inf else 0.0
    within = (weights >= below) ^ larger
    if held >= target or not within.any():
        return None
    if above < np.inf:  # equals of the upper end, perhaps a whole vocabulary of them: nothing to sort
        place = math.ceil((target - held) / float(above)) - 1
        if place < np.count_nonzero(weights == above):
            return int(np.count_nonzero(larger)) + place + 1, above
    candidates = weights[np.flatnonzero(within)]
    descending = np.sort(candidates)[::-1]
    place = int(np.searchsorted(np.cumsum(descending.astype(np.float64)), target - held))
    if place == len(descending):
        return None
    return int(np.count_nonzero(larger)) + place + 1, descending[place]


def _mark_largest(values: NDArray[np.float32], count: int, threshold: np.float32) -> NDArray[np.bool_]:
    """Marks the `count` largest values, of equals the first, given the smallest that is marked.

    Selects by value rather than by sorting indices: that is quicker, and which of several equal values a sort
    or partition of indices puts first differs between processors.
    """
    mask = values >= threshold
    surplus = np.count_nonzero(mask) - count
    if surplus > 0:
        equal = values == threshold
        equal[: np.flatnonzero(equal)[-surplus]] = False
        mask ^= equal
    return mask


def draw(weights: NDArray[np.float32], fraction: float) -> int:
    """Returns the index at which the running sum of `weights` first passes `fraction` of their sum.

    Sums whole rows first, then runs through one of them: a running sum of a vocabulary takes over 1 ms.

    Args:
        weights: not negative, at least one above 0.
        fraction: from 0, less than 1.
    """
    whole = len(weights) // ROW_LENGTH * ROW_LENGTH
    sums = weights[:whole].reshape(-1, ROW_LENGTH).sum(axis=1)
    if whole < len(weights):
        sums = np.append(sums, weights[whole:].sum())
    ends = np.cumsum(sums, dtype=np.float64)
    target = fraction * float(ends[-1])
    row = _first_above(ends, sums, target)
    first = row * ROW_LENGTH
    chosen = weights[first : first + ROW_LENGTH]
    target -= float(ends[row - 1]) if row else 0.0
    return first + _first_above(np.cumsum(chosen, dtype=np.float64), chosen, target)


def _first_above(ends: NDArray[np.float64], parts: NDArray[np.float32], target: float) -> int:
    """Returns the first index whose running sum is above `target`; where rounding hides it, the last part."""
    return min(int(np.searchsorted(ends, target, side="right")), int(np.flatnonzero(parts)[-1]))
