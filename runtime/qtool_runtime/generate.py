"""The generation loop: token ids in, token ids out. Text is none of its business (see `stream.py`)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.engine import DeadlinePassed, Session
from qtool_runtime.logprobs import TokenLogprobs, token_logprobs
from qtool_runtime.prompt import Prompt
from qtool_runtime.reader import Reader
from qtool_runtime.sampling import Sampler

MakeRoom = Callable[[int], NDArray[np.int64] | None]
"""Takes the number of tokens of the answer so far. Returns token ids of a shorter prompt, of shape (count,),
with which the answer goes on, or None to end it."""


@dataclass
class GenerationResult:
    """What a generation has done so far; `generate` keeps it up to date.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: how many of them were known, so that only the others were read.
        token_ids: the answer so far, without the id that ended it.
        stop_reason: None while it runs, then "eos" (an end token of the model's, or nothing may follow in the
            grammar of the answer), "stop" (a stop string or stop id of the caller's), "length"
            (`max_tokens`), "deadline", "context" (the context is full), "cancelled" (closed or cancelled
            before its end) or "error" (an exception ended it).
        prefill_seconds: time to read the prompt and choose the first token.
        decode_seconds: time to choose all others. What the caller does between two tokens is not counted.
        cache_bytes: bytes of the KV cache at the end.
        logprobs: one record for each of `token_ids`, if they were asked for.
        forced_tokens: how many of `token_ids` were put there by `interject` rather than chosen.
        drafted_tokens: tokens that were read ahead because they might follow.
        accepted_tokens: how many of them did, so that their successors needed no forward pass of their own.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    stop_reason: str | None = None
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    cache_bytes: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    forced_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    _decode_steps: int = 0

    @property
    def time_to_first_token(self) -> float:
        """Seconds from the first request to the first token."""
        return self.prefill_seconds

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens read per second, those that were known left out; 0 before the first token."""
        read = self.prompt_tokens - self.cached_tokens
        return read / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens generated per second after the first; 0 before the second token."""
        return self._decode_steps / self.decode_seconds if self.decode_seconds else 0.0


def generate(
    session: Session,
    prompt: Prompt,
    sampler: Sampler,
    result: GenerationResult,
    *,
    max_tokens: int | None,
    endings: Mapping[int, str],
    deadline: float | None = None,
    logprobs: int | None = None,
    speculate: bool = False,
    make_room: MakeRoom | None = None,
    interject: Callable[[int], Sequence[int]] | None = None,
) -> Generator[int, None, None]:
    """Reads the prompt, then yields one token id after the other until something ends the answer.

    Args:
        session: has read nothing yet.
        prompt: what the answer continues.
        sampler: chooses each token.
        result: is filled in as the generation goes on.
        max_tokens: most tokens to generate; None for as many as the context holds.
        endings: token ids that end the answer, and the stop reason that each gives.
        deadline: seconds from now for everything, the caller's own between two tokens included. A forward
            pass that has begun is not interrupted; it is of one token, or of one chunk of the prompt.
        logprobs: how many alternatives to record beside each token; None for no records.
        speculate: read drafts ahead where the text repeats itself (see `speculation.py`).
        make_room: is asked for a shorter prompt when the context is full.
        interject: is told each chosen token; the ids it returns follow that token in place of choices. They
            count as tokens of the answer, but none of them ends it.

    Raises:
        ContextLimitError: the prompt does not fit.
        Cancelled: the session was cancelled.
        GenerationError: the model returned NaN.
    """
    result.prompt_tokens = len(prompt)
    reader = Reader(session, speculate=speculate)
    forced: deque[int] = deque()
    chosen = True

    def certain() -> Sequence[int]:
        return tuple(forced) or sampler.forced_continuation()

    started = time.perf_counter()
    if deadline is not None:
        session.deadline = started + deadline
    try:
        logits = reader.read(prompt)
        result.cached_tokens = reader.cached
        token = sampler.choose(logits)
        session.announce(token)
        result.prefill_seconds = time.perf_counter() - started

        while not (chosen and token in endings):
            result.token_ids.append(token)
            result.cache_bytes = session.cache_bytes
            if logprobs is not None:
                result.logprobs.append(token_logprobs(logits, token, logprobs))
            if chosen and interject:
                forced.extend(interject(token))
            yield token
            if sampler.complete or len(result.token_ids) == max_tokens:
                result.stop_reason = "eos" if sampler.complete else "length"
                return
            started = time.perf_counter()
            found = _read_on(reader, result.token_ids, certain, max_tokens, make_room)
            if found is None:
                result.stop_reason = "context"
                return
            logits, chosen = found, not forced
            token = sampler.choose(logits) if chosen else _take(forced, sampler, result)
            session.announce(token)
            result.decode_seconds += time.perf_counter() - started + session.seconds_ahead
            result.drafted_tokens, result.accepted_tokens = reader.drafted, reader.accepted
            result._decode_steps += 1
        result.stop_reason = endings[token]
    except DeadlinePassed:
        result.stop_reason = "deadline"
    finally:
        reader.finish()


def _take(forced: deque[int], sampler: Sampler, result: GenerationResult) -> int:
    """Takes the next token that is put into the answer rather than chosen."""
    token = forced.popleft()
    sampler.take(token)
    result.forced_tokens += 1
    return token


def _read_on(
    reader: Reader,
    answer: list[int],
    certain: Callable[[], Sequence[int]],
    max_tokens: int | None,
    make_room: MakeRoom | None,
) -> NDArray[np.float32] | None:
    """Reads the last token of the answer, if need be behind a shorter prompt; None if the context is full."""
    if reader.room > 0:
        wanted = reader.room if max_tokens is None else max_tokens - len(answer)
        return reader.after(answer[-1], wanted, certain)
    shorter = make_room(len(answer)) if make_room else None
    return None if shorter is None else reader.restart(np.concatenate([shorter, answer]))
