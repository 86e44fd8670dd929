"""What a model's answers took so far, in numbers, for the application. Nothing is sent anywhere."""

from __future__ import annotations

import math
import threading
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qtool_runtime.engine import Session
from qtool_runtime.generate import GenerationResult

WINDOW = 1024
"""Answers whose times are kept, the latest ones: about 100 kB."""


@dataclass(frozen=True)
class Distribution:
    """How one measure is spread over the latest answers; all zero where there are none.

    Attributes:
        count: answers that have the measure.
        p50: half of them are at most this; likewise `p90` and `p99` (nearest rank).
    """

    count: int = 0
    minimum: float = 0.0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    maximum: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """Describes some values."""
        if not values:
            return cls()
        ranked = sorted(values)
        p50, p90, p99 = (ranked[math.ceil(len(ranked) * share) - 1] for share in (0.5, 0.9, 0.99))
        return cls(len(ranked), ranked[0], sum(ranked) / len(ranked), p50, p90, p99, ranked[-1])


@dataclass(frozen=True)
class MetricsSummary:
    """A model's answers since it was loaded, or since `Metrics.reset`.

    Times and rates are of the latest answers only (`WINDOW`). An answer without a first token has none, and
    one of a single token has no decode rate.

    Attributes:
        kernels: what computed them; see `Model.kernels`.
        answers: answers that have ended. Those that never began do not count.
        stop_reasons: how many answers ended for each reason; see `GenerationResult`.
        prompt_tokens: tokens of their prompts.
        cached_tokens: how many of these were known, so that only the others were read.
        answer_tokens: tokens that were generated.
        forced_tokens: how many of these were put there rather than chosen.
        drafted_tokens: tokens that were read ahead because they might follow.
        accepted_tokens: how many of them did.
        time_to_first_token: seconds.
        prefill_rate: prompt tokens read per second.
        decode_rate: generated tokens per second, after the first.
        cache_bytes: bytes of the KV caches that are held now, by all sessions of the model.
        peak_cache_bytes: the most that were held at once. It is looked at when an answer ends and when a
            summary is made, which is where caches are longest.
    """

    kernels: str
    answers: int
    stop_reasons: dict[str, int]
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    forced_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    time_to_first_token: Distribution
    prefill_rate: Distribution
    decode_rate: Distribution
    cache_bytes: int
    peak_cache_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON data."""
        return asdict(self)


class Metrics:
    """Adds up what the answers of one model took. Answers may end in any thread.

    Args:
        kernels: what computes them.
    """

    def __init__(self, kernels: str) -> None:
        self._kernels = kernels
        # A forgotten stream ends wherever Python collects it, also within the lines that hold the lock.
        self._lock = threading.RLock()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self.reset()

    def reset(self) -> None:
        """Forgets all that was counted. Caches that are held stay what they are, and are the new peak."""
        with self._lock:
            self._stop_reasons: Counter[str] = Counter()
            self._prompt_tokens = self._cached_tokens = self._answer_tokens = self._forced_tokens = 0
            self._drafted_tokens = self._accepted_tokens = 0
            self._times: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)
            self._peak_cache_bytes = 0

    def watch(self, session: Session) -> None:
        """Counts the session's cache for as long as it lives."""
        with self._lock:
            self._sessions.add(session)

    def add(self, result: GenerationResult) -> None:
        """Counts an answer that has ended and whose session still holds its cache."""
        with self._lock:
            self._stop_reasons[result.stop_reason or "error"] += 1
            self._prompt_tokens += result.prompt_tokens
            self._cached_tokens += result.cached_tokens
            self._answer_tokens += len(result.token_ids)
            self._forced_tokens += result.forced_tokens
            self._drafted_tokens += result.drafted_tokens
            self._accepted_tokens += result.accepted_tokens
            self._times.append((result.time_to_first_token, result.prefill_rate, result.decode_rate))
            self._held_bytes()

    def summary(self) -> MetricsSummary:
        """Returns the figures as they are now."""
        with self._lock:
            times = [[value for value in column if value] for column in zip(*self._times, strict=True)]
            first, prefill, decode = times or ([], [], [])
            return MetricsSummary(
                kernels=self._kernels,
                answers=self._stop_reasons.total(),
                stop_reasons=dict(self._stop_reasons),
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._cached_tokens,
                answer_tokens=self._answer_tokens,
                forced_tokens=self._forced_tokens,
                drafted_tokens=self._drafted_tokens,
                accepted_tokens=self._accepted_tokens,
                time_to_first_token=Distribution.of(first),
                prefill_rate=Distribution.of(prefill),
                decode_rate=Distribution.of(decode),
                cache_bytes=self._held_bytes(),
                peak_cache_bytes=self._peak_cache_bytes,
            )

    def _held_bytes(self) -> int:
        """Returns the bytes that all caches hold now, and remembers their peak."""
        held = sum(session.cache_bytes for session in self._sessions)
        self._peak_cache_bytes = max(self._peak_cache_bytes, held)
        return held
