"""Is a loaded model fit to answer? A short generation, judged: for readiness probes and new installations.

Without thresholds of the caller's, a check fails on what no working model does, however slow the machine is:
logits that are not numbers, that are all the same, or that differ from run to run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.checks import check_threshold
from qtool_runtime.engine import Session
from qtool_runtime.errors import ContextLimitError, GenerationError

PROMPT = "The quick brown fox jumps over the lazy dog because"
TOKENS = 8
"""Tokens to generate, in each of two runs."""


@dataclass(frozen=True)
class HealthCheck:
    """One figure and its verdict.

    Attributes:
        name: what was looked at; see `HealthReport`.
        value: what was found; None if it cannot be known on this system.
        rule: how value and threshold have to compare: "at least", "at most" or "more than".
        threshold: None if none was asked for; then the check is for information, and ok.
        ok: the verdict.
    """

    name: str
    value: float | None
    rule: str
    threshold: float | None
    ok: bool


@dataclass(frozen=True)
class HealthReport:
    """What a health check found.

    Attributes:
        checks: in this order, "tokens" (generated in both runs), "non_finite_logits", "logit_spread"
            (largest less smallest logit of a row), "repeated_tokens" (how far the second run gave the tokens
            of the first), "time_to_first_token" (seconds), "decode_rate" (tokens per second),
            "resident_bytes" (memory of the process, of all that runs in it). Times are those of the second
            run, so that what happens only once after loading does not count.
        error: what ended the generation, empty if nothing did; then "tokens" is the only check.
    """

    checks: tuple[HealthCheck, ...]
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether every check is."""
        return all(check.ok for check in self.checks)

    @property
    def failures(self) -> tuple[HealthCheck, ...]:
        """The checks that are not ok."""
        return tuple(check for check in self.checks if not check.ok)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON data."""
        return {"ok": self.ok, **asdict(self)}


@dataclass
class _Run:
    """One greedy generation: its tokens, and what was seen on the way."""

    token_ids: list[int] = field(default_factory=list)
    non_finite_logits: int = 0
    logit_spread: float = np.inf
    time_to_first_token: float = 0.0
    decode_seconds: float = 0.0
    error: str = ""


def check_health(
    new_session: Callable[[], Session],
    prompt: NDArray[np.int64],
    *,
    max_time_to_first_token: float | None = None,
    min_decode_rate: float | None = None,
    max_resident_bytes: float | None = None,
) -> HealthReport:
    """Generates the same few tokens twice, and judges what comes; `Model.health` describes the arguments.

    Args:
        new_session: makes an empty session.
        prompt: int64 token ids of shape (count,), cut to what the session's context has room for.

    Raises:
        GenerationError: a threshold is not a number above 0.
        ContextLimitError: the context is a single token.
    """
    check_threshold("max_time_to_first_token", max_time_to_first_token)
    check_threshold("min_decode_rate", min_decode_rate)
    check_threshold("max_resident_bytes", max_resident_bytes)
    runs: list[_Run] = []
    for _ in range(2):
        session = new_session()
        try:
            runs.append(_generate(session, prompt))
        finally:
            session.close()
    if error := runs[0].error or runs[1].error:
        found = sum(len(run.token_ids) for run in runs)
        return HealthReport((_judge("tokens", found, "at least", 2 * TOKENS),), error)
    first, second = runs
    wanted = len(first.token_ids)
    rate = (wanted - 1) / second.decode_seconds if second.decode_seconds else None
    return HealthReport(
        (
            _judge("tokens", wanted + len(second.token_ids), "at least", 2 * wanted),
            _judge("non_finite_logits", sum(run.non_finite_logits for run in runs), "at most", 0),
            _judge("logit_spread", min(run.logit_spread for run in runs), "more than", 0),
            _judge("repeated_tokens", _common(first.token_ids, second.token_ids), "at least", wanted),
            _judge("time_to_first_token", second.time_to_first_token, "at most", max_time_to_first_token),
            _judge("decode_rate", rate, "at least", min_decode_rate),
            _judge("resident_bytes", resident_bytes(), "at most", max_resident_bytes),
        )
    )


def resident_bytes() -> int | None:
    """Returns the memory of this process in RAM, or None where the system does not tell (not Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _generate(session: Session, prompt: NDArray[np.int64]) -> _Run:
    """Generates greedily and past end tokens, so that no option of a request matters."""
    if session.context < 2:
        raise ContextLimitError("the context is 1 token; a health check takes at least 2")
    run = _Run()
    count = min(TOKENS, session.context - 1)
    try:
        started = time.perf_counter()
        logits = session.forward(prompt[: session.context - count])[-1]
        run.time_to_first_token = time.perf_counter() - started
        _note(logits, run)
        started = time.perf_counter()
        while len(run.token_ids) < count:
            _note(session.forward(run.token_ids[-1:])[-1], run)
        run.decode_seconds = time.perf_counter() - started
    except GenerationError as error:
        run.error = error.message
    return run


def _note(logits: NDArray[np.float32], run: _Run) -> None:
    """Looks at one row of logits, of shape (vocab_size,), and takes its most likely token."""
    finite = logits[np.isfinite(logits)]
    run.non_finite_logits += logits.size - finite.size
    run.logit_spread = min(run.logit_spread, float(np.ptp(finite)) if finite.size else 0.0)
    run.token_ids.append(int(logits.argmax()))


def _common(first: list[int], second: list[int]) -> int:
    """Counts the tokens that two lists have in common at their start."""
    return next(
        (index for index, (one, other) in enumerate(zip(first, second, strict=True)) if one != other),
        len(first),
    )


def _judge(name: str, value: float | None, rule: str, threshold: float | None) -> HealthCheck:
    """A value that cannot be known passes only if nothing was asked of it."""
    if threshold is None:
        ok = True
    elif value is None:
        ok = False
    else:
        ok = {"at least": value >= threshold, "at most": value <= threshold, "more than": value > threshold}[
            rule
        ]
    return HealthCheck(name, value, rule, threshold, ok)
